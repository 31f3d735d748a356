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
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void Watchdog::Add(std::shared_ptr<Watched> watched) {
  absl::MutexLock lock(&mutex_);
  Watched* const key = watched.get();
  watched_.emplace(key, std::move(watched));
}

void Watchdog::Remove(Watched* watched) {
  std::shared_ptr<Watched> last;  // destroyed after the lock is given back
  absl::MutexLock lock(&mutex_);
  if (auto node = watched_.extract(watched)) last = std::move(node.mapped());
}

void Watchdog::Run(absl::Duration interval, absl::Duration chore_interval,
                   const std::function<void()>& chore) {
  absl::Time next_chore = absl::Now() + chore_interval;
  std::vector<std::shared_ptr<Watched>> expired;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stop_), interval)) return;
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
