// Measuring and scaling what lies in registered memory: here where there is little, else on the
// pools' threads.
#include <atomic>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "server/rpc/call.h"

namespace gradclip {
namespace {

// Work of less shared memory takes less time, or hardly more, than waking the pool's threads and
// having them wait for more, which keeps a processor busy.
constexpr uint64_t kLeastForPool = uint64_t{2} << 20;

}  // namespace

void Call::RunWork(void (Call::*then)()) {
  if (session_.work_waits() || session_.work_bytes() >= kLeastForPool) return RunInPools(then);
  for (size_t task = 0; task < session_.work_tasks(); ++task) session_.RunTask(task);
  FinishWork(then);
}

void Call::RunInPools(void (Call::*then)()) {
  std::map<WorkerPool*, std::vector<size_t>> shares;
  for (size_t task = 0; task < session_.work_tasks(); ++task) {
    const std::string_view device = session_.task_device(task);
    WorkerPool& pool =
        device.empty() ? environment_.pool : environment_.device_pools.find(device)->second;
    shares[&pool].push_back(task);
  }
  if (shares.empty()) return FinishWork(then);
  const std::shared_ptr<Call> self = shared_from_this();
  const auto pools_left = std::make_shared<std::atomic<size_t>>(shares.size());
  for (auto& [pool, tasks] : shares) {
    const size_t count = tasks.size();
    pool->Run(
        count,
        [self, tasks = std::move(tasks)](size_t index) { self->session_.RunTask(tasks[index]); },
        [self, then, pools_left] {
          if (pools_left->fetch_sub(1, std::memory_order_acq_rel) == 1) self->FinishWork(then);
        });
  }
}

void Call::FinishWork(void (Call::*then)()) {
  if (absl::Status finished = session_.FinishWork(); !finished.ok()) {
    return End(std::move(finished));
  }
  (this->*then)();
}

}  // namespace gradclip
