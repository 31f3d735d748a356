// One Redis of a store: a thread that moves the link to it, and the calls whose jobs are there.
// Thread-safe.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_ENDPOINT_H_
#define GRADCLIP_SERVER_GROUP_REDIS_ENDPOINT_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/group/redis/link.h"
#include "server/group/redis/options.h"
#include "server/group/redis/steps.h"
#include "server/group/store.h"
#include "server/net/file_descriptor.h"
#include "server/net/stop_signal.h"
#include "server/observe/log.h"

namespace gradclip {

class RedisEndpoint {
 public:
  // As RedisLink's.
  RedisEndpoint(const RedisAddress& address, const RedisOptions& options, const GroupTimes& times,
                const std::string& server, RedisCounts& counts, Log* log);
  // Waits up to a second for Redis to hear of calls that have gone.
  ~RedisEndpoint();

  RedisEndpoint(const RedisEndpoint&) = delete;
  RedisEndpoint& operator=(const RedisEndpoint&) = delete;

  // False where the system had no descriptor for it: then it must not be used.
  bool ok() const { return wakes_.ok() && timer_.ok(); }
  const std::string& name() const { return name_; }  // "HOST:PORT/DB"

  // What a new call is told at once; OK where it may come.
  absl::Status MayCome() const;

  // As RedisSteps' functions; they take effect soon, in the order of the calls.
  void Join(std::shared_ptr<RedisCall> call);
  void Contribute(std::shared_ptr<RedisCall> call, std::string contribution);
  void Leave(std::shared_ptr<RedisCall> call, Going going);
  void StopOpening();

  bool reachable() const;
  // Of the Redis reached last; empty before any.
  std::string instance() const;

  // Waits until nothing is under way.
  void WaitUntilIdle();

 private:
  // Wakes the thread; or, where it can wait, only when a join has to be sent.
  void Post(std::function<void()> task, bool can_wait = false);
  void Run();
  void Publish();  // what other threads see of the link

  const std::string name_;
  const size_t max_commands_;
  RedisLink link_;    // the thread's
  RedisSteps steps_;  // the thread's

  const StopSignal wakes_;
  const FileDescriptor timer_;  // wakes the thread later
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  // Guarded by mutex_.
  std::vector<std::function<void()>> tasks_;
  bool woken_ = false;      // for them
  bool timer_set_ = false;  // likewise
  size_t commands_ = 0;     // of the link, when it was looked at last
  absl::Status reachable_;
  std::string instance_;
  bool is_idle_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_ENDPOINT_H_
