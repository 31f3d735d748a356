// One budget, whoever asks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/server/memory/budget_fixture.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;

TEST_F(BudgetTest, TakesWhatIsFreeAndGivesItBack) {
  Reservation reservation;
  EXPECT_TRUE(budget_->TryReserve("", 60, &reservation));
  EXPECT_EQ(reservation.bytes(), 60);
  EXPECT_EQ(budget_->used_bytes(), 60);
  EXPECT_EQ(budget_->total_bytes(), 100);
  reservation.Release();
  EXPECT_EQ(reservation.bytes(), 0);
  EXPECT_EQ(budget_->used_bytes(), 0);
}

TEST_F(BudgetTest, FailsToTakeMoreThanIsFreeAndLeavesTheResultEmpty) {
  Reservation first;
  ASSERT_TRUE(budget_->TryReserve("", 60, &first));
  Reservation second;
  EXPECT_FALSE(budget_->TryReserve("", 41, &second));
  EXPECT_EQ(second.bytes(), 0);
  EXPECT_TRUE(budget_->TryReserve("", 40, &second));
  EXPECT_FALSE(budget_->TryReserve("", 41, &second));  // what it held goes back first
  EXPECT_EQ(second.bytes(), 0);
  EXPECT_EQ(budget_->used_bytes(), 60);
  EXPECT_FALSE(budget_->TryReserve("", UINT64_MAX, &second));
}

TEST_F(BudgetTest, GrantsOnThisThreadWhatIsFree) {
  Reserve(0, 100);
  EXPECT_THAT(granted_, ElementsAre(0));
  EXPECT_EQ(held_[0].bytes(), 100);
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(BudgetTest, ServesFirstComeFirstServedThoughALaterOneWouldFit) {
  Reserve(0, 80);
  Reserve(1, 50);
  Reserve(2, 10);  // would fit
  EXPECT_THAT(granted_, ElementsAre(0));
  EXPECT_EQ(budget_->waiting(), 2);
  Reservation barging;
  EXPECT_FALSE(budget_->TryReserve("", 10, &barging));
  Drop(0);
  EXPECT_THAT(granted_, ElementsAre(0, 1, 2));
  EXPECT_EQ(budget_->used_bytes(), 60);
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(BudgetTest, GrantsOnlyAsManyOfThoseWaitingAsFit) {
  Reserve(0, 100);
  Reserve(1, 60);
  Reserve(2, 60);
  Reserve(3, 40);
  Drop(0);
  EXPECT_THAT(granted_, ElementsAre(0, 1));
  Drop(1);
  EXPECT_THAT(granted_, ElementsAre(0, 1, 2, 3));
}

TEST_F(BudgetTest, GrantsZeroBytesEvenWhileOthersWait) {
  Reserve(0, 100);
  Reserve(1, 1);
  Reservation nothing;
  EXPECT_TRUE(budget_->TryReserve("", 0, &nothing));
  Reserve(2, 0);
  EXPECT_THAT(granted_, ElementsAre(0, 2));
  Drop(0);
  EXPECT_THAT(granted_, ElementsAre(0, 2, 1));
}

TEST_F(BudgetTest, LetsThoseBehindACancelledOneGo) {
  Reserve(0, 60);
  const auto large = Reserve(1, 100);
  Reserve(2, 30);
  Reserve(3, 10);
  EXPECT_THAT(granted_, ElementsAre(0));
  EXPECT_TRUE(large->Cancel());
  EXPECT_THAT(granted_, ElementsAre(0, 2, 3));
  EXPECT_FALSE(large->Cancel());  // only once
  Drop(0);
  EXPECT_THAT(granted_, ElementsAre(0, 2, 3));
}

TEST_F(BudgetTest, LeavesTheHeadWaitingWhenOneBehindItIsCancelled) {
  Reserve(0, 60);
  Reserve(1, 100);
  const auto behind = Reserve(2, 100);
  EXPECT_TRUE(behind->Cancel());
  EXPECT_EQ(budget_->waiting(), 1);
  EXPECT_THAT(granted_, ElementsAre(0));
  Drop(0);
  EXPECT_THAT(granted_, ElementsAre(0, 1));
}

TEST_F(BudgetTest, CannotCancelWhatWasGranted) {
  const auto at_once = Reserve(0, 100);
  EXPECT_FALSE(at_once->Cancel());
  const auto later = Reserve(1, 100);
  Drop(0);
  EXPECT_FALSE(later->Cancel());
  EXPECT_THAT(granted_, ElementsAre(0, 1));
}

TEST(Budget, WaitersMayOutliveIt) {
  std::shared_ptr<MemoryBudget::Waiter> waiter;
  {
    MemoryBudget budget(10);
    waiter = budget.Reserve("", 10, [](Reservation) {}).waiter;
  }
  EXPECT_FALSE(waiter->Cancel());
}

TEST_F(BudgetTest, DestroysACancelledCallbackAtOnceAndNotUnderItsLock) {
  Reserve(0, 100);
  // What the callback owns gives bytes back when it dies, which takes the lock.
  auto owned = std::make_shared<Reservation>(std::move(held_[0]));
  const auto waiter = budget_->Reserve("", 50, [owned](Reservation) {}).waiter;
  owned.reset();
  EXPECT_EQ(budget_->used_bytes(), 100);
  EXPECT_TRUE(waiter->Cancel());
  EXPECT_EQ(budget_->used_bytes(), 0);
}

TEST_F(BudgetTest, RunsCallbacksWithoutItsLock) {
  Reserve(0, 100);
  uint64_t used_inside = 0;
  bool reserved_inside = false;
  const auto admission = budget_->Reserve("", 30, [&](Reservation reservation) {
    used_inside = budget_->used_bytes();
    Reservation more;
    reserved_inside = budget_->TryReserve("", 70, &more);
    reservation.Absorb(std::move(more));
    EXPECT_EQ(reservation.bytes(), 100);
  });
  EXPECT_FALSE(admission.refused.has_value());
  Drop(0);
  EXPECT_EQ(used_inside, 30);
  EXPECT_TRUE(reserved_inside);
  EXPECT_EQ(budget_->used_bytes(), 0);
}

TEST(Budget, ServesALongQueueWithoutADeepStack) {
  MemoryBudget budget(1);
  Reservation first;
  ASSERT_TRUE(budget.TryReserve("", 1, &first));
  constexpr int kCallers = 200'000;
  int served = 0;
  for (int i = 0; i < kCallers; ++i) {
    // Each gives its byte back inside its callback, which grants the next.
    const auto admission =
        budget.Reserve("", 1, [&served, i](Reservation) { EXPECT_EQ(served++, i); });
    ASSERT_FALSE(admission.refused.has_value());
  }
  first.Release();
  EXPECT_EQ(served, kCallers);
}

TEST(Reservation, MovesAndAbsorbs) {
  MemoryBudget budget(100);
  Reservation a, b, c;
  ASSERT_TRUE(budget.TryReserve("", 10, &a));
  ASSERT_TRUE(budget.TryReserve("", 20, &b));
  c = std::move(a);
  EXPECT_EQ(a.bytes(), 0);  // NOLINT(bugprone-use-after-move): moved-from is empty
  EXPECT_EQ(c.bytes(), 10);
  c.Absorb(std::move(b));
  EXPECT_EQ(b.bytes(), 0);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(c.bytes(), 30);
  a.Absorb(std::move(c));
  EXPECT_EQ(a.bytes(), 30);
  a.Absorb(Reservation());
  EXPECT_EQ(a.bytes(), 30);
  EXPECT_EQ(budget.used_bytes(), 30);
  a = Reservation();
  EXPECT_EQ(budget.used_bytes(), 0);
}

// Threads reserve for changing callers, cancel at once or wait, and give back. Every request is
// refused, cancelled or granted exactly once, and nobody ever holds more than the limits.
TEST(Budget, HoldsItsPromisesUnderThreads) {
  constexpr uint64_t kTotal = 1000;
  constexpr uint64_t kMost = 600;
  constexpr int kThreads = 8;
  constexpr int kRounds = 1000;
  constexpr size_t kCallers = 3;
  MemoryBudget budget(kTotal, {.max_bytes_per_caller = kMost, .max_waiting_per_caller = 3});
  struct Held {
    void Add(uint64_t bytes) {
      const uint64_t sum = now += bytes;
      for (uint64_t seen = most; sum > seen && !most.compare_exchange_weak(seen, sum);) {
      }
    }
    std::atomic<uint64_t> now = 0;
    std::atomic<uint64_t> most = 0;
  };
  Held all;
  std::array<Held, kCallers> by_caller;
  std::atomic<int> called = 0;
  std::atomic<int> cancelled = 0;
  std::atomic<int> refused = 0;

  const auto work = [&](int seed) {
    std::mt19937 random(seed);
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t bytes = 1 + random() % kMost;
      const size_t caller = random() % kCallers;
      std::promise<Reservation> promise;
      std::future<Reservation> future = promise.get_future();
      const MemoryBudget::Admission admission =
          budget.Reserve(std::to_string(caller), bytes, [&](Reservation reservation) {
            all.Add(reservation.bytes());
            by_caller[caller].Add(reservation.bytes());
            ++called;
            promise.set_value(std::move(reservation));  // throws if it is called twice
          });
      if (admission.refused.has_value()) {
        EXPECT_EQ(admission.waiter, nullptr);
        EXPECT_EQ(admission.refused, MemoryBudget::QueueFull::kMaxWaitingPerCaller);
        ++refused;
        EXPECT_EQ(future.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
        continue;
      }
      if (random() % 2 == 0 && admission.waiter->Cancel()) {
        ++cancelled;
        EXPECT_EQ(future.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
        continue;
      }
      Reservation reservation = future.get();
      EXPECT_EQ(reservation.bytes(), bytes);
      by_caller[caller].now -= bytes;
      all.now -= bytes;
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();

  EXPECT_EQ(called + cancelled + refused, kThreads * kRounds);
  EXPECT_LE(all.most, kTotal);
  for (const Held& held : by_caller) EXPECT_LE(held.most, kMost);
  EXPECT_EQ(budget.used_bytes(), 0);
  EXPECT_EQ(budget.waiting(), 0);
  EXPECT_EQ(budget.callers(), 0);
}

// Threads wait, each for all there is, and every second one cancels while the bytes are held for
// certain: those cancel always, the others are served always.
TEST(Budget, LetsEveryoneCancelWhileTheBytesAreHeld) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 100;
  MemoryBudget budget(10);
  std::atomic<int> called = 0;
  for (int round = 0; round < kRounds; ++round) {
    Reservation held;
    ASSERT_TRUE(budget.TryReserve("", 10, &held));
    std::atomic<int> cancelled = 0;
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i, cancels = i % 2 == 0] {
        const auto waiter =
            budget.Reserve(std::to_string(i % 3), 10, [&](Reservation) { ++called; }).waiter;
        if (cancels && waiter->Cancel()) ++cancelled;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(cancelled, kThreads / 2);
    EXPECT_EQ(budget.waiting(), kThreads / 2);
    held.Release();
    EXPECT_EQ(called, (round + 1) * kThreads / 2);
    EXPECT_EQ(budget.used_bytes(), 0);
  }
}

// The race itself: one thread gives the bytes back while another cancels.
TEST(Budget, LetsExactlyOneOfGrantAndCancelWin) {
  for (int round = 0; round < 500; ++round) {
    MemoryBudget budget(10);
    Reservation first;
    ASSERT_TRUE(budget.TryReserve("", 10, &first));
    std::atomic<int> called = 0;
    const auto waiter = budget.Reserve("other", 10, [&](Reservation) { ++called; }).waiter;
    std::atomic<int> ready = 0;
    const auto meet = [&] {
      ++ready;
      while (ready < 2) std::this_thread::yield();
    };
    std::thread giver([&] {
      meet();
      first.Release();
    });
    meet();
    const bool won = waiter->Cancel();
    giver.join();
    EXPECT_EQ(called, won ? 0 : 1);
    EXPECT_EQ(budget.used_bytes(), 0);
  }
}

}  // namespace
}  // namespace gradclip
