// Compiled without ThreadSanitizer (CMakeLists.txt): what TBB's headers write here is read by TBB's
// library, whose order the sanitizer can't see. WorkerPool's own order is that of its mutex.
#include "server/pool/worker_threads.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/task_arena.h>

namespace gradclip {

struct WorkerThreads::Arena {
  // One more than ours: TBB counts the thread that hands over work, though none of ours helps.
  explicit Arena(int count)
      : limit(oneapi::tbb::global_control::max_allowed_parallelism, count + 1),
        arena(count, /*reserved_for_masters=*/0) {
    arena.initialize();
  }

  oneapi::tbb::global_control limit;
  oneapi::tbb::task_arena arena;
};

WorkerThreads::WorkerThreads(int count)
    : count_(count > 0 ? count : oneapi::tbb::info::default_concurrency()),
      arena_(std::make_unique<Arena>(count_)) {}

WorkerThreads::~WorkerThreads() = default;

void WorkerThreads::Call(void (*work)(void*), void* argument) {
  arena_->arena.enqueue([work, argument] { work(argument); });
}

}  // namespace gradclip
