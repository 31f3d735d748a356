// Ends calls that wait for too long: for a peer that neither sends nor reads, or for memory. One
// thread looks at all calls now and then, so that a call pays two stores per wait and no timer. The
// same thread does what can't be done where it comes up. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_WATCHDOG_H_
#define GRADCLIP_SERVER_RPC_WATCHDOG_H_

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/time/time.h"

namespace gradclip {

// Waits are measured by a clock that nobody sets.
using SteadyTime = std::chrono::steady_clock::time_point;

// Something that can wait for too long.
class Watched {
 public:
  virtual ~Watched() = default;

  // True: it has waited for too long at `now`; Expire() follows. Called under the watchdog's lock:
  // must neither block nor call the watchdog.
  virtual bool ShouldExpire(SteadyTime now) = 0;
  // Called after ShouldExpire() said so, under no lock, perhaps after Remove().
  virtual void Expire() = 0;
};

class Watchdog {
 public:
  // Looks every `interval`, and does `chore` every chore_interval.
  Watchdog(absl::Duration interval, absl::Duration chore_interval, std::function<void()> chore);
  ~Watchdog();  // REQUIRES: nothing is watched any more

  // Shares in owning `watched` until Remove(). False after Close(): it is watched all the same, and
  // AwaitNone() does not wait for it.
  [[nodiscard]] bool Add(std::shared_ptr<Watched> watched);
  // The same for what AwaitNone() never waits for, and Close() does not matter to.
  void AddShort(std::shared_ptr<Watched> watched);
  void Remove(Watched* watched);

  // Whatever is added from here on came too late.
  void Close();
  bool closed() const;
  // Waits until nothing is left of what was added in time, or for the deadline.
  void AwaitNone(SteadyTime deadline);

  // Runs `work` on the watchdog's thread, soon. It must not block.
  void Post(std::function<void()> work);

 private:
  struct Entry {
    std::shared_ptr<Watched> watched;
    bool in_time = false;  // counted in in_time_
  };

  void Run(absl::Duration interval, absl::Duration chore_interval,
           const std::function<void()>& chore);

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // in_time_ is 0 again, posted_ or stop_
  // Guarded by mutex_.
  std::unordered_map<Watched*, Entry> watched_;
  size_t in_time_ = 0;
  bool closed_ = false;
  std::vector<std::function<void()>> posted_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_WATCHDOG_H_
