// oneTBB's threads, for WorkerPool alone. Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_WORKER_THREADS_H_
#define GRADCLIP_SERVER_POOL_WORKER_THREADS_H_

#include <memory>

namespace gradclip {

class WorkerThreads {
 public:
  // count: at least 1; 0: one for each processor that this process may use.
  explicit WorkerThreads(int count);
  ~WorkerThreads();

  int count() const { return count_; }

  // Calls work(argument) on one of them, soon.
  void Call(void (*work)(void*), void* argument);

 private:
  struct Arena;

  const int count_;
  const std::unique_ptr<Arena> arena_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_WORKER_THREADS_H_
