// A running GradClip server: listeners, service, health, and all that calls share.
// Drain() may be called from any thread; the rest from one.
#ifndef GRADCLIP_SERVER_RPC_SERVER_H_
#define GRADCLIP_SERVER_RPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/compute/compute.h"
#include "server/group/admission.h"
#include "server/group/store.h"
#include "server/net/acceptor.h"
#include "server/net/http_page.h"
#include "server/observe/limit_hits.h"
#include "server/observe/log.h"
#include "server/observe/metrics.h"
#include "server/options/options.h"
#include "server/pool/worker_pool.h"
#include "server/rpc/call_limits.h"
#include "server/rpc/connection_guard.h"
#include "server/rpc/connections.h"
#include "server/rpc/environment.h"
#include "server/rpc/health.h"
#include "server/rpc/service.h"
#include "server/rpc/watchdog.h"
#include "server/security/allow_list.h"
#include "server/security/renewed_credentials.h"
#include "server/security/tokens.h"
#include "server/shm/memory_socket.h"
#include "server/shm/registry.h"

namespace gradclip {

class Server {
 public:
  // Serves by `options`. `log` must outlive the server. Errors: an unusable backend, certificate,
  // address or store of groups.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options, Log& log);
  // Cancels what still runs.
  ~Server();

  // Where it listens, one for each of options.listen, with the port really bound.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Where metrics are: "127.0.0.1:9090", with the port really bound; empty without
  // --metrics-listen.
  const std::string& metrics_address() const { return metrics_address_; }

  // How often callers have run into limits; open connections, and calls in progress.
  const LimitHits& limit_hits() const { return limit_hits_; }
  uint64_t connections() const { return acceptor_->connections(); }
  uint64_t calls() const { return call_limits_.calls(); }
  // Those of them that have a place in a group's step.
  uint64_t group_calls() const { return environment_.group_calls.load(std::memory_order_relaxed); }

  // Gradient bytes that calls and registered memory hold of the budget now, and calls that wait for
  // some.
  uint64_t reserved_bytes() const { return memory_->gradients.used_bytes(); }
  uint64_t waiting_calls() const { return memory_->gradients.waiting(); }
  // What the parsed start messages of calls in progress may hold.
  uint64_t declarations_bytes() const { return memory_->declarations.used_bytes(); }

  // Health turns NOT_SERVING, new calls are refused (UNAVAILABLE), running ones may end and their
  // callers take the replies until `timeout` has passed; what is left then is cancelled. Returns
  // once no call and no connection is left.
  void Drain(absl::Duration timeout);

 private:
  Server(const Options& options, std::unique_ptr<Compute> compute, std::unique_ptr<Store> groups,
         Log& log);

  absl::Status Follow(const Options& options);  // what the files say
  absl::Status Listen(const Options& options);
  absl::Status ServeMetrics(const Options& options);
  ServerState State() const;

  const std::unique_ptr<Compute> compute_;
  const std::unique_ptr<Store> groups_;
  Log& log_;
  const std::shared_ptr<Memory> memory_;
  RegionRegistry regions_;
  WorkerPool pool_;
  DevicePools device_pools_;  // none without --allow-cuda-ipc
  Watchdog watchdog_;
  CallLimits call_limits_;
  LimitHits limit_hits_;
  ConnectionGuard connection_guard_;
  std::unique_ptr<Callers> callers_;          // null without --auth-token-file
  std::unique_ptr<Permissions> permissions_;  // null without --allow
  GroupAdmission group_admission_;
  std::unique_ptr<Metrics> metrics_;  // null without --metrics-listen
  Environment environment_;
  Service service_;
  HealthService health_;
  UnknownMethods unknown_methods_;
  std::vector<std::string> addresses_;
  std::unique_ptr<RenewedCredentials> tls_;      // null without --tls-cert
  std::unique_ptr<MemorySocket> memory_socket_;  // null without --memory-socket
  std::unique_ptr<Connections> connections_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;  // after server_: nothing is accepted for one that has gone
  std::string metrics_address_;
  std::unique_ptr<HttpPage> metrics_page_;  // last, as it looks at all above; null as metrics_
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_SERVER_H_
