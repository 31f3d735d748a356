#include "server/rpc/watchdog.h"

#include <utility>

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

void Watchdog::AwaitNone(SteadyTime deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return watched_.empty(); });
}

void Watchdog::Post(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(work));
  }
  changed_.notify_all();
}

void Watchdog::Run(absl::Duration interval, absl::Duration chore_interval,
                   const std::function<void()>& chore) {
  const auto look_every = absl::ToChronoNanoseconds(interval);
  const auto do_every = absl::ToChronoNanoseconds(chore_interval);
  SteadyTime next_look = std::chrono::steady_clock::now() + look_every;
  SteadyTime next_chore = std::chrono::steady_clock::now() + do_every;
  std::vector<std::function<void()>> posted;
  std::vector<std::shared_ptr<Watched>> expired;
  while (true) {
    SteadyTime now;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, next_look, [this] { return stop_ || !posted_.empty(); });
      if (stop_) return;
      posted.swap(posted_);
      now = std::chrono::steady_clock::now();
      if (now >= next_look) {  // else it was woken for what is posted
        next_look = now + look_every;
        for (const auto& [key, watched] : watched_) {
          if (watched->ShouldExpire(now)) expired.push_back(watched);
        }
      }
    }
    for (const auto& work : posted) work();
    posted.clear();
    for (const auto& watched : expired) watched->Expire();
    expired.clear();
    if (now >= next_chore) {
      chore();
      next_chore = now + do_every;
    }
  }
}

}  // namespace gradclip
