// Threads for work that waits, as for a device: it would keep those of a WorkerPool, of which there
// are as many as processors, from work that computes. Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_WAITING_THREADS_H_
#define GRADCLIP_SERVER_POOL_WAITING_THREADS_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gradclip {

class WaitingThreads {
 public:
  // Up to `most` threads, at least 1, each started once it is needed.
  explicit WaitingThreads(size_t most) : most_(most) {}
  ~WaitingThreads();  // runs what is queued, and waits for it

  WaitingThreads(const WaitingThreads&) = delete;
  WaitingThreads& operator=(const WaitingThreads&) = delete;

  // Runs `work` on one of them, the first given first. Returns at once. REQUIRES: it does not
  // throw.
  void Run(std::function<void()> work);

 private:
  void Work();

  const size_t most_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool ending_ = false;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_WAITING_THREADS_H_
