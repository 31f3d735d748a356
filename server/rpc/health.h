// gRPC's health service: whether the server serves. Thread-safe. Its own, as gRPC's answers
// everybody, and receives requests on any number of streams for any time. (Of a request that is
// received gRPC still takes up to the largest message, before it is found to be too large.)
#ifndef GRADCLIP_SERVER_RPC_HEALTH_H_
#define GRADCLIP_SERVER_RPC_HEALTH_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>

#include "server/rpc/call_limits.h"
#include "server/rpc/environment.h"

namespace gradclip {

class HealthService final : public grpc::Service {
 public:
  // Requests that are being received, and watchers, at once: of all, and of one host. Calls of the
  // main service do not count, so that a busy server is not taken for a dead one.
  static constexpr uint64_t kMaxReceiving = 64;
  static constexpr uint64_t kMaxReceivingPerHost = 16;
  static constexpr uint64_t kMaxWatching = 1024;
  static constexpr uint64_t kMaxWatchingPerHost = 256;

  // `open`: also for callers without token or certificate (--open-health). Serves from the start.
  HealthService(Environment& environment, bool open);
  // The last call has ended, on another thread: gRPC keeps the order, and the lock shows it.
  ~HealthService() override { const std::lock_guard lock(mutex_); }

  // From here on it does not serve, which watchers are told.
  void StopServing();

 private:
  class Exchange;
  class Check;
  class Watch;

  bool serving() const;
  void AddWatch(std::shared_ptr<Watch> watch);
  void RemoveWatch(const std::shared_ptr<Watch>& watch);

  template <typename Call>
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Make(
      grpc::CallbackServerContext* context);

  Environment& environment_;
  const bool open_;
  CallLimits receiving_{kMaxReceiving, kMaxReceivingPerHost};
  CallLimits watching_{kMaxWatching, kMaxWatchingPerHost};

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  bool serving_ = true;
  std::set<std::shared_ptr<Watch>> watches_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_HEALTH_H_
