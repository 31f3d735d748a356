// oneTBB's threads, for WorkerPool alone. Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_WORKER_THREADS_H_
#define GRADCLIP_SERVER_POOL_WORKER_THREADS_H_

#include <memory>

#include "server/pool/threads.h"

namespace gradclip {

class WorkerThreads : public Threads {
 public:
  // count: at least 1; 0: one for each processor that this process may use.
  explicit WorkerThreads(int count);
  ~WorkerThreads() override;

  int count() const override { return count_; }
  void Call(void (*work)(void*), void* argument) override;

 private:
  struct Arena;

  const int count_;
  const std::unique_ptr<Arena> arena_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_WORKER_THREADS_H_
