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

bool Watchdog::Add(std::shared_ptr<Watched> watched) {
  const std::lock_guard lock(mutex_);
  Watched* const key = watched.get();
  const bool in_time = !closed_;
  watched_.emplace(key, Entry{std::move(watched), in_time});
  if (in_time) ++in_time_;
  return in_time;
}

void Watchdog::AddShort(std::shared_ptr<Watched> watched) {
  const std::lock_guard lock(mutex_);
  Watched* const key = watched.get();
  watched_.emplace(key, Entry{std::move(watched), false});
}

void Watchdog::Remove(Watched* watched) {
  Entry last;  // destroyed after the lock is given back
  const std::lock_guard lock(mutex_);
  auto node = watched_.extract(watched);
  if (!node) return;
  last = std::move(node.mapped());
  if (last.in_time && --in_time_ == 0) changed_.notify_all();
}

void Watchdog::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

bool Watchdog::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void Watchdog::AwaitNone(SteadyTime deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return in_time_ == 0; });
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
        for (const auto& [key, entry] : watched_) {
          if (entry.watched->ShouldExpire(now)) expired.push_back(entry.watched);
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
