#include "server/pool/worker_pool.h"

#include <atomic>
#include <utility>

#include "server/pool/waiting_threads.h"
#include "server/pool/worker_threads.h"

namespace gradclip {
namespace {

std::unique_ptr<Threads> MakeThreads(int count, WorkerPool::For work) {
  if (work == WorkerPool::For::kWaiting) return std::make_unique<WaitingThreads>(count);
  return std::make_unique<WorkerThreads>(count);
}

}  // namespace

struct WorkerPool::Job {
  Job(size_t count, std::function<void(size_t)> run, std::function<void()> end)
      : task(std::move(run)), done(std::move(end)), tasks(count), left(count) {}

  const std::function<void(size_t)> task;
  const std::function<void()> done;
  const size_t tasks;
  size_t next = 0;  // guarded by the pool's mutex_
  std::atomic<size_t> left;

  // Runs one task, and `done` after the last.
  void RunOne(size_t index) {
    task(index);
    if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) done();
  }
};

WorkerPool::WorkerPool(int threads, For work) : threads_(MakeThreads(threads, work)) {}

WorkerPool::~WorkerPool() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [&] { return working_ == 0; });
}

void WorkerPool::Run(size_t tasks, std::function<void(size_t)> task, std::function<void()> done) {
  const auto job = std::make_shared<Job>(tasks, std::move(task), std::move(done));
  int more = 0;
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(job);
    while (working_ < threads() && static_cast<size_t>(more) < tasks) {
      ++working_;
      ++more;
    }
  }
  for (; more > 0; --more) {
    threads_->Call([](void* pool) { static_cast<WorkerPool*>(pool)->Work(); }, this);
  }
}

void WorkerPool::Work() {
  std::unique_lock lock(mutex_);
  while (!jobs_.empty()) {
    std::shared_ptr<Job> job = std::move(jobs_.front());
    jobs_.pop_front();
    const size_t index = job->next++;
    if (job->next < job->tasks) jobs_.push_back(job);
    lock.unlock();
    job->RunOne(index);
    job.reset();  // what it holds on to may take the mutex, or a while, to let go
    lock.lock();
  }
  if (--working_ == 0) idle_.notify_all();
}

}  // namespace gradclip
