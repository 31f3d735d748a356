// The store of several servers behind one address: the steps are in Redis, so ranks of one step may
// come to any of them, and to another one where their server has died. README.md says how, and what
// a Redis that fails can lose.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_REDIS_STORE_H_
#define GRADCLIP_SERVER_GROUP_REDIS_REDIS_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/group/redis/endpoint.h"
#include "server/group/redis/link.h"
#include "server/group/redis/options.h"
#include "server/group/store.h"
#include "server/observe/log.h"

namespace gradclip {

class RedisStore final : public Store {
 public:
  // Does not wait for Redis: while it is away, calls get UNAVAILABLE. INVALID_ARGUMENT where
  // `options` name no endpoint, UNAVAILABLE where the system has no descriptors or random numbers
  // left. `log` may be null; else it must outlive the store.
  static absl::StatusOr<std::unique_ptr<RedisStore>> Make(const RedisOptions& options,
                                                          const GroupTimes& times, Log* log);
  ~RedisStore() override;  // REQUIRES: no seat is left

  // An error at once only where Redis is known to be away, or has too much to do; any other comes
  // through `on_outcome`.
  absl::StatusOr<std::shared_ptr<Seat>> Join(const Participant& participant,
                                             OnOutcome on_outcome) override;
  bool spans_servers() const override { return true; }
  std::vector<Endpoint> endpoints() const override;
  // The same at all servers of the same endpoints. Empty until each of these was reached once.
  std::string instance() const override;
  // Steps are not aborted: other servers finish them.
  void StopOpening() override;

  // Whether every endpoint can be used: for health and metrics.
  bool reachable() const;
  const RedisCounts& counts() const { return counts_; }

  // "HOST:PORT/DB" of the endpoint that the job's steps are at.
  const std::string& EndpointOf(std::string_view job) const;

  // Waits until all that calls have done so far has reached Redis. For tests.
  void WaitUntilIdle();

 private:
  class RedisSeat;

  RedisStore(const RedisOptions& options, const GroupTimes& times, std::string server, Log* log);

  RedisEndpoint& Choose(std::string_view job) const;

  const std::string server_;  // this store's own name among all that use the same Redis
  RedisCounts counts_;
  std::atomic<uint64_t> calls_ = 0;  // that have ever come
  std::vector<std::unique_ptr<RedisEndpoint>> endpoints_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_REDIS_STORE_H_
