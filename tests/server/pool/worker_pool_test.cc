#include "server/pool/worker_pool.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace gradclip {
namespace {

// Waits for events that other threads count.
class Counter {
 public:
  void Add() {
    const std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  void Await(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

TEST(WorkerPool, HasAThreadForEachProcessorUnlessItIsTold) {
  EXPECT_GE(WorkerPool(0).threads(), 1);
  EXPECT_EQ(WorkerPool(3).threads(), 3);
}

class WorkerPoolTest : public testing::TestWithParam<WorkerPool::For> {};

INSTANTIATE_TEST_SUITE_P(Both, WorkerPoolTest,
                         testing::Values(WorkerPool::For::kComputing, WorkerPool::For::kWaiting),
                         [](const auto& info) {
                           return info.param == WorkerPool::For::kComputing ? "Computing"
                                                                            : "Waiting";
                         });

TEST_P(WorkerPoolTest, RunsEachTaskOnceAndThenTheEnd) {
  WorkerPool pool(3, GetParam());
  constexpr size_t kTasks = 1000;
  std::vector<int> runs(kTasks, 0);
  Counter done;
  bool all_ran = false;
  pool.Run(
      kTasks, [&](size_t task) { ++runs[task]; },
      [&] {
        all_ran = std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; });
        done.Add();
      });
  done.Await(1);
  EXPECT_TRUE(all_ran);
}

TEST_P(WorkerPoolTest, RunsSeveralTasksOfAJobAtOnce) {
  WorkerPool pool(2, GetParam());
  Counter begun;
  Counter done;
  // Each waits for the other.
  pool.Run(
      2,
      [&](size_t) {
        begun.Add();
        begun.Await(2);
      },
      [&] { done.Add(); });
  done.Await(1);
}

TEST_P(WorkerPoolTest, GivesAShortJobItsTurnAmidALongOne) {
  WorkerPool pool(1, GetParam());
  Counter first_runs;
  Counter go;
  Counter done;
  std::atomic<int> long_tasks = 0;
  int long_tasks_before_the_short_one = -1;
  pool.Run(
      100,
      [&](size_t) {
        first_runs.Add();
        go.Await(1);
        ++long_tasks;
      },
      [&] { done.Add(); });
  first_runs.Await(1);
  pool.Run(
      1, [&](size_t) { long_tasks_before_the_short_one = long_tasks; }, [&] { done.Add(); });
  go.Add();
  done.Await(2);
  EXPECT_LE(long_tasks_before_the_short_one, 2);
  EXPECT_EQ(long_tasks, 100);
}

TEST_P(WorkerPoolTest, TakesJobsFromItsOwnTasksAndFromManyThreads) {
  Counter done;
  std::atomic<int> runs = 0;
  {
    WorkerPool pool(2, GetParam());
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([&] {
        for (int job = 0; job < 50; ++job) {
          pool.Run(
              7, [&](size_t) { ++runs; },
              [&] {
                pool.Run(
                    1, [&](size_t) { ++runs; }, [&] { done.Add(); });
              });
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    done.Await(200);
  }
  EXPECT_EQ(runs, 200 * 8);
}

TEST_P(WorkerPoolTest, EndsOnlyOnceAllHasRun) {
  std::atomic<int> runs = 0;
  bool ended = false;
  {
    WorkerPool pool(2, GetParam());
    pool.Run(
        500, [&](size_t) { ++runs; }, [&] { ended = true; });
  }
  EXPECT_EQ(runs, 500);
  EXPECT_TRUE(ended);
}

TEST(WorkerPool, ForWaitingKeepsNoThreadOfOneForComputing) {
  Counter begun;
  Counter computed;
  Counter done;
  WorkerPool waiting(4, WorkerPool::For::kWaiting);
  WorkerPool computing(1);
  waiting.Run(
      2,
      [&](size_t) {
        begun.Add();
        computed.Await(1);
      },
      [&] { done.Add(); });
  begun.Await(2);
  computing.Run(
      4, [](size_t) {}, [&] { computed.Add(); });
  done.Await(1);
}

}  // namespace
}  // namespace gradclip
