#include "server/pool/waiting_threads.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <latch>
#include <thread>
#include <vector>

#include "server/pool/worker_pool.h"

namespace gradclip {
namespace {

TEST(WaitingThreads, RunsWorkInOrder) {
  std::vector<int> ran;
  {
    WaitingThreads threads(1);
    for (int i = 0; i < 100; ++i) {
      threads.Run([&ran, i] { ran.push_back(i); });
    }
  }
  ASSERT_EQ(ran.size(), 100u);
  EXPECT_TRUE(std::is_sorted(ran.begin(), ran.end()));
}

TEST(WaitingThreads, HasAsManyAsItMay) {
  std::barrier all(4);  // each waits for the others
  std::atomic<int> ran = 0;
  {
    WaitingThreads threads(4);
    for (int i = 0; i < 400; ++i) {
      threads.Run([&] {
        all.arrive_and_wait();
        ++ran;
      });
    }
  }
  EXPECT_EQ(ran, 400);
}

TEST(WaitingThreads, TakesWorkFromItsOwnAndFromManyThreads) {
  std::atomic<int> ran = 0;
  {
    WaitingThreads threads(2);
    std::vector<std::thread> callers(4);
    for (std::thread& caller : callers) {
      caller = std::thread([&] {
        for (int i = 0; i < 100; ++i) {
          threads.Run([&] { threads.Run([&] { ++ran; }); });
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  EXPECT_EQ(ran, 400);
}

TEST(WaitingThreads, KeepNoneOfAPool) {
  WaitingThreads threads(4);
  WorkerPool pool(1);
  std::latch begun(2);
  std::latch computed(1);
  for (int i = 0; i < 2; ++i) {
    threads.Run([&] {
      begun.count_down();
      computed.wait();
    });
  }
  begun.wait();
  pool.Run(
      4, [](size_t) {}, [&] { computed.count_down(); });
  computed.wait();
}

}  // namespace
}  // namespace gradclip
