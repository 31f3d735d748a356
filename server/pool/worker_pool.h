// Threads that measure and scale large memory for calls, so that no reaction to a caller has to.
// Those that compute are as many as processors; what waits, as for a device, has a pool of its own.
// Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_WORKER_POOL_H_
#define GRADCLIP_SERVER_POOL_WORKER_POOL_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "server/pool/threads.h"

namespace gradclip {

class WorkerPool {
 public:
  enum class For : uint8_t { kComputing, kWaiting };

  // threads: at least 1; 0, for computing: one for each processor that this process may use.
  explicit WorkerPool(int threads, For work = For::kComputing);
  ~WorkerPool();  // waits for what runs

  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return threads_->count(); }

  // Runs task(0) .. task(tasks - 1) on the pool's threads, several at once, then `done` on the
  // thread that ran the last. Returns at once; `done` may run before it does. Where several jobs
  // are at hand each gets a turn for one task after the other, so that a short one never waits for
  // all of a long one. REQUIRES: tasks > 0; neither throws.
  void Run(size_t tasks, std::function<void(size_t)> task, std::function<void()> done);

 private:
  struct Job;

  void Work();  // takes tasks until there are none

  const std::unique_ptr<Threads> threads_;

  std::mutex mutex_;
  std::condition_variable idle_;
  // Guarded by mutex_.
  std::deque<std::shared_ptr<Job>> jobs_;  // that have tasks left, the next turn's first
  int working_ = 0;                        // calls of Work() under way or to come
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_WORKER_POOL_H_
