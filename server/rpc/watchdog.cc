#include "server/rpc/watchdog.h"

#include <utility>
#include <vector>

#include "absl/time/clock.h"

namespace gradclip {

Watchdog::Watchdog(absl::Duration interval, absl::Duration chore_interval,
                   std::function<void()> chore)
    : thread_([this, interval, chore_interval, chore = std::move(chore)] {
        Run(interval, chore_interval, chore);
      }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::Add(std::shared_ptr<Watched> watched) {
  const std::lock_guard lock(mutex_);
  Watched* const key = watched.get();
  watched_.emplace(key, std::move(watched));
}

void Watchdog::Remove(Watched* watched) {
  std::shared_ptr<Watched> last;  // destroyed after the lock is given back
  const std::lock_guard lock(mutex_);
  if (auto node = watched_.extract(watched)) last = std::move(node.mapped());
  if (watched_.empty()) changed_.notify_all();
}

void Watchdog::AwaitNone(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, absl::ToChronoTime(deadline), [this] { return watched_.empty(); });
}

void Watchdog::Run(absl::Duration interval, absl::Duration chore_interval,
                   const std::function<void()>& chore) {
  absl::Time next_chore = absl::Now() + chore_interval;
  std::vector<std::shared_ptr<Watched>> expired;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, absl::ToChronoNanoseconds(interval), [this] { return stop_; })) {
        return;
      }
      const absl::Time now = absl::Now();
      for (const auto& [key, watched] : watched_) {
        if (watched->ShouldExpire(now)) expired.push_back(watched);
      }
    }
    for (const auto& watched : expired) watched->Expire();
    expired.clear();
    if (absl::Now() >= next_chore) {
      chore();
      next_chore = absl::Now() + chore_interval;
    }
  }
}

}  // namespace gradclip
