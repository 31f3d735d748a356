#include "server/pool/waiting_threads.h"

namespace gradclip {

WaitingThreads::WaitingThreads(int count) {
  for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Work(); });
}

WaitingThreads::~WaitingThreads() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void WaitingThreads::Call(void (*work)(void*), void* argument) {
  const std::lock_guard lock(mutex_);
  calls_.emplace_back(work, argument);
  changed_.notify_one();
}

void WaitingThreads::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !calls_.empty() || ending_; });
    if (calls_.empty()) return;
    const auto [work, argument] = calls_.front();
    calls_.pop_front();
    lock.unlock();
    work(argument);
    lock.lock();
  }
}

}  // namespace gradclip
