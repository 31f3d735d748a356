// Threads of one's own, for WorkerPool alone. oneTBB's would do for work that computes, and not for
// work that waits: one that waits keeps others, of other pools too, from their work. Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_WAITING_THREADS_H_
#define GRADCLIP_SERVER_POOL_WAITING_THREADS_H_

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "server/pool/threads.h"

namespace gradclip {

class WaitingThreads : public Threads {
 public:
  // count: at least 1.
  explicit WaitingThreads(int count);
  ~WaitingThreads() override;  // makes the calls that are to come, and waits for them

  int count() const override { return static_cast<int>(threads_.size()); }
  void Call(void (*work)(void*), void* argument) override;

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<std::pair<void (*)(void*), void*>> calls_;
  bool ending_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_WAITING_THREADS_H_
