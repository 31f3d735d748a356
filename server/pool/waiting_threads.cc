#include "server/pool/waiting_threads.h"

#include <utility>

namespace gradclip {

WaitingThreads::~WaitingThreads() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WaitingThreads::Run(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    // While this ends, work comes from a thread that will take it.
    if (queue_.size() > idle_ && threads_.size() < most_ && !ending_) {
      threads_.emplace_back([this] { Work(); });
    }
  }
  changed_.notify_one();
}

void WaitingThreads::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    changed_.wait(lock, [this] { return !queue_.empty() || ending_; });
    --idle_;
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it holds on to may take a while to let go
    lock.lock();
  }
}

}  // namespace gradclip
