#include "server/memory/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <future>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace gradclip {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using Reservation = MemoryBudget::Reservation;

// A budget of 100 bytes, and requests that note in which order they are granted.
class BudgetTest : public ::testing::Test {
 protected:
  ~BudgetTest() override {
    // Whoever still waits is served.
    for (int i = 0; i < 100 && budget_->callers() > 0; ++i) {
      for (size_t request = 0; request < held_.size(); ++request) Drop(request);
    }
    EXPECT_EQ(budget_->callers(), 0);
  }

  // The request keeps what it gets until Drop(request).
  std::shared_ptr<MemoryBudget::Waiter> Reserve(size_t request, uint64_t bytes,
                                                const std::string& caller = "") {
    MemoryBudget::Admission admission = Ask(request, bytes, caller);
    EXPECT_FALSE(admission.refused.has_value());
    return admission.waiter;
  }

  MemoryBudget::Admission Ask(size_t request, uint64_t bytes, const std::string& caller) {
    return budget_->Reserve(caller, bytes, [this, request](Reservation reservation) {
      granted_.push_back(request);
      held_[request] = std::move(reservation);
    });
  }

  void Drop(size_t request) { held_[request].Release(); }

  // Requests granted since the last call.
  std::vector<size_t> Granted() { return std::exchange(granted_, {}); }

  std::unique_ptr<MemoryBudget> budget_ = std::make_unique<MemoryBudget>(100);
  std::vector<size_t> granted_;
  std::vector<Reservation> held_{64};  // goes before the budget
};

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

TEST_F(BudgetTest, CountsWhatEachCallerHoldsAndWaitsFor) {
  Reserve(0, 60, "a");
  Reserve(1, 30, "b");
  Reserve(2, 10, "b");
  Reserve(3, 50, "b");
  Reserve(4, 20, "c");
  EXPECT_EQ(budget_->used_bytes(), 100);
  EXPECT_EQ(budget_->used_bytes("a"), 60);
  EXPECT_EQ(budget_->used_bytes("b"), 40);
  EXPECT_EQ(budget_->used_bytes("c"), 0);
  EXPECT_EQ(budget_->used_bytes("nobody"), 0);
  EXPECT_EQ(budget_->waiting(), 2);
  EXPECT_EQ(budget_->waiting("a"), 0);
  EXPECT_EQ(budget_->waiting("b"), 1);
  EXPECT_EQ(budget_->waiting("c"), 1);
  EXPECT_EQ(budget_->waiting("nobody"), 0);
  EXPECT_EQ(budget_->callers(), 3);
}

TEST_F(BudgetTest, ForgetsCallersThatHoldAndWaitForNothing) {
  Reservation reservation;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(budget_->TryReserve(std::to_string(i), 10, &reservation));
    reservation.Release();
    ASSERT_TRUE(budget_->TryReserve(std::to_string(i), 0, &reservation));
  }
  EXPECT_EQ(budget_->callers(), 0);
  Reserve(0, 100, "a");
  for (int i = 0; i < 1000; ++i) {
    ASSERT_FALSE(budget_->TryReserve(std::to_string(i), 10, &reservation));
    ASSERT_TRUE(Reserve(1, 10, std::to_string(i))->Cancel());
  }
  EXPECT_EQ(budget_->callers(), 1);
  Drop(0);
  EXPECT_EQ(budget_->callers(), 0);
}

TEST_F(BudgetTest, ServesCallersInTurnsHoweverManyRequestsOneHas) {
  Reserve(0, 100, "holder");
  for (size_t i = 10; i < 20; ++i) Reserve(i, 50, "many");
  Reserve(1, 50, "one");
  Reserve(2, 50, "two");
  Reserve(3, 50, "two");
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(0, 10, 1));
  Drop(10);
  Drop(1);
  EXPECT_THAT(Granted(), ElementsAre(2, 11));
  Drop(2);
  Drop(11);
  EXPECT_THAT(Granted(), ElementsAre(3, 12));
  Drop(3);
  EXPECT_THAT(Granted(), ElementsAre(13));
}

TEST_F(BudgetTest, LetsALateCallerWaitForOneGrantOfEachOther) {
  Reserve(0, 100, "holder");
  for (size_t i = 10; i < 20; ++i) Reserve(i, 50, "a");
  for (size_t i = 20; i < 30; ++i) Reserve(i, 50, "b");
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(0, 10, 20));
  Reserve(1, 50, "late");
  Drop(10);
  Drop(20);
  Drop(11);
  EXPECT_THAT(Granted(), ElementsAre(11, 21, 1));
}

TEST_F(BudgetTest, HoldsOthersBackForALargeRequestWhoseTurnItIs) {
  Reserve(0, 20, "small");
  Reserve(1, 20, "small");
  Reserve(2, 90, "large");
  Reservation barging;
  EXPECT_FALSE(budget_->TryReserve("small", 10, &barging));
  EXPECT_FALSE(budget_->TryReserve("other", 10, &barging));
  Reserve(3, 20, "small");
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(0, 1));
  Drop(1);
  EXPECT_THAT(Granted(), ElementsAre(2));
  Drop(2);
  EXPECT_THAT(Granted(), ElementsAre(3));
}

TEST_F(BudgetTest, HoldsNobodyBackForACallerAtItsLimit) {
  budget_ = std::make_unique<MemoryBudget>(100, BudgetLimits{.max_bytes_per_caller = 40});
  Reserve(0, 30, "a");
  Reserve(1, 20, "a");  // over its limit
  Reserve(2, 10, "a");  // within, but behind
  Reservation other;
  EXPECT_FALSE(budget_->TryReserve("a", 10, &other));
  EXPECT_TRUE(budget_->TryReserve("b", 40, &other));
  Reserve(3, 30, "c");
  EXPECT_THAT(Granted(), ElementsAre(0, 3));
  Reserve(4, 10, "c");  // no room, as all is held
  Drop(0);              // nor is "a" at its limit any more, but it comes behind "c"
  EXPECT_THAT(Granted(), ElementsAre(4, 1));
}

TEST_F(BudgetTest, LetsNoCallerHoldMoreThanItsLimit) {
  budget_ = std::make_unique<MemoryBudget>(100, BudgetLimits{.max_bytes_per_caller = 40});
  EXPECT_EQ(budget_->limits().max_bytes_per_caller, 40);
  Reservation first, second;
  EXPECT_FALSE(budget_->TryReserve("a", 41, &first));
  EXPECT_TRUE(budget_->TryReserve("a", 25, &first));
  EXPECT_FALSE(budget_->TryReserve("a", 16, &second));
  EXPECT_TRUE(budget_->TryReserve("a", 15, &second));
  first.Absorb(std::move(second));
  EXPECT_EQ(budget_->used_bytes("a"), 40);
  Reserve(0, 40, "a");
  EXPECT_THAT(Granted(), IsEmpty());
  first.Release();
  EXPECT_THAT(Granted(), ElementsAre(0));
  EXPECT_EQ(budget_->used_bytes("a"), 40);
  EXPECT_EQ(MemoryBudget(100).limits().max_bytes_per_caller, 100);
}

// By default the limit is all there is: who asks for more beside what it holds waits for itself.
TEST_F(BudgetTest, HoldsNobodyBackForACallerThatWaitsForItsOwnBytes) {
  Reserve(0, 60, "a");
  Reserve(1, 50, "a");
  Reserve(2, 30, "b");
  EXPECT_THAT(Granted(), ElementsAre(0, 2));
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(1));
}

TEST_F(BudgetTest, RefusesToQueueMoreThanTheLimits) {
  budget_ = std::make_unique<MemoryBudget>(
      100, BudgetLimits{.max_waiting = 3, .max_waiting_per_caller = 2});
  using Full = MemoryBudget::QueueFull;
  Reserve(0, 100, "a");
  const auto waits = Reserve(1, 10, "a");
  Reserve(2, 10, "a");
  MemoryBudget::Admission admission = Ask(3, 10, "a");
  EXPECT_EQ(admission.refused, Full::kMaxWaitingPerCaller);
  EXPECT_EQ(admission.waiter, nullptr);
  Reserve(4, 10, "b");
  EXPECT_EQ(Ask(5, 10, "b").refused, Full::kMaxWaiting);
  EXPECT_EQ(Ask(5, 10, "c").refused, Full::kMaxWaiting);
  EXPECT_EQ(Ask(3, 10, "a").refused, Full::kMaxWaitingPerCaller);  // the caller's comes first
  EXPECT_EQ(budget_->waiting(), 3);
  EXPECT_EQ(budget_->callers(), 2);
  Reserve(6, 0, "c");  // does not wait
  EXPECT_TRUE(waits->Cancel());
  Reserve(7, 10, "c");  // there is a place again
  EXPECT_EQ(Ask(5, 10, "b").refused, Full::kMaxWaiting);
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(0, 6, 4, 7, 2));
  Reserve(3, 70, "a");  // does not wait either
  EXPECT_THAT(Granted(), ElementsAre(3));
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(BudgetTest, QueuesNobodyWhereNobodyMayWait) {
  budget_ = std::make_unique<MemoryBudget>(100, BudgetLimits{.max_waiting = 0});
  Reserve(0, 60, "a");
  EXPECT_EQ(Ask(1, 60, "b").refused, MemoryBudget::QueueFull::kMaxWaiting);
  Reserve(2, 40, "b");
  EXPECT_THAT(Granted(), ElementsAre(0, 2));
}

TEST_F(BudgetTest, EndsTheTurnOfAFirstWaiterThatCancels) {
  Reserve(0, 60, "holder");
  const auto turn = Reserve(1, 50, "a");
  Reserve(2, 50, "a");
  Reserve(3, 40, "b");
  EXPECT_TRUE(turn->Cancel());
  EXPECT_THAT(Granted(), ElementsAre(0, 3));
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(2));
}

TEST_F(BudgetTest, KeepsTheCallersTurnWhereItsFirstCancelsBeforeIt) {
  Reserve(0, 100, "holder");
  Reserve(1, 50, "a");
  const auto first = Reserve(2, 50, "b");
  Reserve(3, 50, "b");
  Reserve(4, 50, "c");
  EXPECT_TRUE(first->Cancel());
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(0, 1, 3));
}

TEST_F(BudgetTest, KeepsTheTurnWhereOneBehindTheFirstCancels) {
  Reserve(0, 60, "holder");
  Reserve(1, 50, "a");
  const auto behind = Reserve(2, 10, "a");
  Reserve(3, 10, "b");
  EXPECT_TRUE(behind->Cancel());
  EXPECT_THAT(Granted(), ElementsAre(0));
  Drop(0);
  EXPECT_THAT(Granted(), ElementsAre(1, 3));
}

TEST_F(BudgetTest, LosesTheTurnWhereTheNextIsOverTheCallersLimit) {
  budget_ = std::make_unique<MemoryBudget>(100, BudgetLimits{.max_bytes_per_caller = 50});
  Reserve(0, 50, "holder");
  Reserve(1, 30, "a");
  Reserve(2, 20, "b");
  const auto within = Reserve(3, 20, "a");
  const auto over = Reserve(4, 30, "a");
  Reserve(5, 10, "a");
  Reserve(6, 10, "b");
  EXPECT_TRUE(within->Cancel());  // 30 beside 30 is over the limit of 50
  EXPECT_THAT(Granted(), ElementsAre(0, 1, 2));
  Drop(2);
  EXPECT_THAT(Granted(), ElementsAre(6));
  EXPECT_TRUE(over->Cancel());
  EXPECT_THAT(Granted(), ElementsAre(5));
}

TEST_F(BudgetTest, GrantsThoseBehindACancelledOneThatWasOverItsLimit) {
  budget_ = std::make_unique<MemoryBudget>(100, BudgetLimits{.max_bytes_per_caller = 50});
  Reserve(0, 30, "a");
  const auto over = Reserve(1, 30, "a");
  Reserve(2, 20, "a");
  EXPECT_THAT(Granted(), ElementsAre(0));
  EXPECT_TRUE(over->Cancel());
  EXPECT_THAT(Granted(), ElementsAre(2));
}

TEST_F(BudgetTest, CancelsAnybodyAnywhere) {
  Reserve(0, 100, "holder");
  for (const size_t cancelled : {1, 2, 3, 4, 5, 6}) {
    std::map<size_t, std::shared_ptr<MemoryBudget::Waiter>> waiters;
    for (const size_t request : {1, 2, 3, 4, 5, 6}) {
      waiters[request] = Reserve(request, 100, request % 2 == 0 ? "even" : "odd");
    }
    EXPECT_TRUE(waiters[cancelled]->Cancel());
    EXPECT_FALSE(waiters[cancelled]->Cancel());
    EXPECT_EQ(budget_->waiting(), 5);
    Granted();
    std::vector<size_t> served;
    for (size_t holds = 0; served.size() < 5;) {
      Drop(holds);
      const std::vector<size_t> granted = Granted();
      ASSERT_EQ(granted.size(), 1) << "cancelled " << cancelled;
      holds = granted[0];
      served.push_back(holds);
    }
    EXPECT_THAT(served, Not(Contains(cancelled)));
    // First come, first served within a caller.
    const auto is_odd = [](size_t request) { return request % 2 == 1; };
    std::stable_partition(served.begin(), served.end(), is_odd);
    std::vector<size_t> sorted = {1, 3, 5, 2, 4, 6};
    sorted.erase(std::find(sorted.begin(), sorted.end(), cancelled));
    EXPECT_EQ(served, sorted);
    for (size_t request = 1; request <= 6; ++request) Drop(request);
    EXPECT_EQ(budget_->callers(), 0);
    Reserve(0, 100, "holder");
  }
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

// What the budget should do, written down without care for time: all requests in one list, and a
// number for each caller that takes turns, the lowest first.
class Model {
 public:
  Model(uint64_t total, const BudgetLimits& limits) : total_(total), limits_(limits) {}

  // True: it is granted.
  bool Try(int caller, uint64_t bytes) {
    if (!turns_.empty() || Waiting(caller) > 0) return false;
    if (Used(caller) + bytes > limits_.max_bytes_per_caller || Used() + bytes > total_)
      return false;
    return true;
  }

  bool QueueIsFull(int caller) const {
    return waiting_.size() >= limits_.max_waiting ||
           Waiting(caller) >= limits_.max_waiting_per_caller;
  }

  void Hold(int request, int caller, uint64_t bytes) { held_[request] = {request, caller, bytes}; }

  void Queue(int request, int caller, uint64_t bytes) {
    waiting_.push_back({request, caller, bytes});
    UpdateTurns();
  }

  // The requests that are granted.
  std::vector<int> Release(int request) {
    held_.erase(request);
    UpdateTurns();
    return Grant();
  }

  std::vector<int> Cancel(int request) {
    const auto found = std::find_if(waiting_.begin(), waiting_.end(),
                                    [&](const Request& other) { return other.id == request; });
    const int caller = found->caller;
    const bool has_the_turn = !turns_.empty() && Turn() == caller && First(caller)->id == request;
    waiting_.erase(found);
    if (has_the_turn) turns_.erase(caller);
    UpdateTurns();
    return Grant();
  }

  uint64_t Used() const {
    uint64_t used = 0;
    for (const auto& [id, request] : held_) used += request.bytes;
    return used;
  }

  uint64_t Used(int caller) const {
    uint64_t used = 0;
    for (const auto& [id, request] : held_) used += request.caller == caller ? request.bytes : 0;
    return used;
  }

  uint64_t Waiting(int caller) const {
    return std::count_if(waiting_.begin(), waiting_.end(),
                         [&](const Request& request) { return request.caller == caller; });
  }

  bool Holds(int request) const { return held_.count(request) > 0; }

 private:
  struct Request {
    int id = 0;
    int caller = 0;
    uint64_t bytes = 0;
  };

  const Request* First(int caller) const {
    const auto found = std::find_if(waiting_.begin(), waiting_.end(), [&](const Request& request) {
      return request.caller == caller;
    });
    return found == waiting_.end() ? nullptr : &*found;
  }

  int Turn() const {
    return std::min_element(turns_.begin(), turns_.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }

  void UpdateTurns() {
    for (int caller = 0; caller < kCallers; ++caller) {
      const Request* const first = First(caller);
      if (first == nullptr || Used(caller) + first->bytes > limits_.max_bytes_per_caller) {
        turns_.erase(caller);
      } else if (turns_.count(caller) == 0) {
        turns_[caller] = ++last_number_;
      }
    }
  }

  std::vector<int> Grant() {
    std::vector<int> granted;
    while (!turns_.empty()) {
      const int caller = Turn();
      const Request first = *First(caller);
      if (Used() + first.bytes > total_) break;
      granted.push_back(first.id);
      held_[first.id] = first;
      waiting_.erase(std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const Request& request) { return request.id == first.id; }));
      turns_.erase(caller);
      UpdateTurns();
    }
    return granted;
  }

 public:
  static constexpr int kCallers = 6;

 private:
  const uint64_t total_;
  const BudgetLimits limits_;
  std::map<int, Request> held_;
  std::deque<Request> waiting_;
  std::map<int, uint64_t> turns_;  // of those that take turns
  uint64_t last_number_ = 0;
};

// Random operations, and after each the budget and the model agree.
void AgreeWithTheModel(uint64_t total, const BudgetLimits& limits, int seed) {
  MemoryBudget budget(total, limits);
  Model model(total, budget.limits());
  std::mt19937 random(seed);
  std::map<int, Reservation> held;
  std::map<int, std::shared_ptr<MemoryBudget::Waiter>> waiters;
  std::vector<int> granted;
  uint64_t refused = 0;
  const auto any = [&](const auto& map) {
    return std::next(map.begin(), static_cast<int>(random() % map.size()))->first;
  };
  const auto expect_granted = [&](const std::vector<int>& expected) {
    ASSERT_EQ(granted, expected);
    for (const int request : granted) {
      ASSERT_TRUE(model.Holds(request));
      waiters.erase(request);
    }
    granted.clear();
  };
  for (int request = 0; request < 3000; ++request) {
    // The first caller asks for more than the others together.
    const int caller = random() % 2 == 0 ? 0 : static_cast<int>(random() % Model::kCallers);
    const uint64_t most = random() % 4 == 0 ? budget.limits().max_bytes_per_caller : total / 8;
    const uint64_t bytes = 1 + random() % most;
    switch (random() % 8) {
      case 0: {
        Reservation reservation;
        const bool expected = model.Try(caller, bytes);
        ASSERT_EQ(budget.TryReserve(std::to_string(caller), bytes, &reservation), expected);
        if (!expected) break;
        model.Hold(request, caller, bytes);
        held[request] = std::move(reservation);
        break;
      }
      case 1:
      case 2:
      case 3: {
        const bool at_once = model.Try(caller, bytes);
        const MemoryBudget::Admission admission = budget.Reserve(
            std::to_string(caller), bytes, [&held, &granted, request](Reservation reservation) {
              held[request] = std::move(reservation);
              granted.push_back(request);
            });
        if (at_once) {
          ASSERT_EQ(granted, std::vector<int>{request});
          granted.clear();
          model.Hold(request, caller, bytes);
          ASSERT_FALSE(admission.waiter->Cancel());
        } else if (model.QueueIsFull(caller)) {
          ++refused;
          ASSERT_TRUE(admission.refused.has_value());
        } else {
          ASSERT_FALSE(admission.refused.has_value());
          model.Queue(request, caller, bytes);
          waiters[request] = admission.waiter;
        }
        break;
      }
      case 4:
      case 5: {
        if (waiters.empty()) break;
        const int cancels = any(waiters);
        ASSERT_TRUE(waiters[cancels]->Cancel());
        waiters.erase(cancels);
        ASSERT_NO_FATAL_FAILURE(expect_granted(model.Cancel(cancels)));
        break;
      }
      default: {
        if (held.empty()) break;
        const int gives = any(held);
        Reservation given = std::move(held[gives]);
        held.erase(gives);
        given.Release();
        ASSERT_NO_FATAL_FAILURE(expect_granted(model.Release(gives)));
      }
    }
    ASSERT_EQ(budget.used_bytes(), model.Used());
    ASSERT_EQ(budget.waiting(), waiters.size());
    uint64_t callers = 0;
    for (int i = 0; i < Model::kCallers; ++i) {
      const std::string name = std::to_string(i);
      ASSERT_EQ(budget.used_bytes(name), model.Used(i));
      ASSERT_LE(budget.used_bytes(name), budget.limits().max_bytes_per_caller);
      ASSERT_EQ(budget.waiting(name), model.Waiting(i));
      callers += budget.used_bytes(name) + budget.waiting(name) > 0 ? 1 : 0;
    }
    ASSERT_EQ(budget.callers(), callers);
  }
  EXPECT_EQ(refused > 0, limits.max_waiting < 1000);
  for (const auto& [request, waiter] : waiters) waiter->Cancel();
}

TEST(Budget, DoesWhatASlowModelDoes) {
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    ASSERT_NO_FATAL_FAILURE(AgreeWithTheModel(100, {}, seed));
    ASSERT_NO_FATAL_FAILURE(AgreeWithTheModel(100, {.max_bytes_per_caller = 40}, seed));
    ASSERT_NO_FATAL_FAILURE(AgreeWithTheModel(
        1000, {.max_bytes_per_caller = 300, .max_waiting = 6, .max_waiting_per_caller = 2}, seed));
  }
}

// The promise of the header, counted by who only sees requests, grants and cancellations: from the
// moment on in which a waiter is its caller's first and within that caller's limit, each other
// caller is granted at most one request before it. And while somebody so waits, nobody is granted
// what came later and need not wait.
TEST(Budget, GrantsEachOtherCallerAtMostOneBeforeAFirstWaiter) {
  constexpr uint64_t kTotal = 1000;
  constexpr uint64_t kMost = 500;
  constexpr int kCallers = 5;
  struct Request {
    int id = 0;
    uint64_t bytes = 0;
    std::shared_ptr<MemoryBudget::Waiter> waiter;
  };
  struct Caller {
    uint64_t used = 0;
    std::deque<Request> queue;
    int watched = -1;                      // the first waiter, once it is within the limit
    std::array<int, kCallers> overtook{};  // grants of others since then
  };
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    MemoryBudget budget(kTotal, {.max_bytes_per_caller = kMost});
    std::array<Caller, kCallers> callers;
    std::vector<std::pair<int, Reservation>> held;
    std::mt19937 random(seed);
    const auto watch = [&](Caller& caller) {
      const bool within =
          !caller.queue.empty() && caller.used + caller.queue.front().bytes <= kMost;
      const int first = within ? caller.queue.front().id : -1;
      if (first == caller.watched) return;
      caller.watched = first;
      caller.overtook = {};
    };
    int most_overtaken = 0;
    const auto on_grant = [&](int who, Reservation reservation) {
      for (int other = 0; other < kCallers; ++other) {
        if (other == who || callers[other].watched < 0) continue;
        most_overtaken = std::max(most_overtaken, ++callers[other].overtook[who]);
      }
      callers[who].used += reservation.bytes();
      held.emplace_back(who, std::move(reservation));
    };
    for (int id = 0; id < 4000; ++id) {
      const int who = std::min(static_cast<int>(random() % 10), kCallers - 1);
      const uint64_t bytes = 1 + random() % (random() % 3 == 0 ? kMost : 100);
      Caller& caller = callers[who];
      switch (random() % 8) {
        case 0: {
          Reservation reservation;
          if (budget.TryReserve(std::to_string(who), bytes, &reservation)) {
            on_grant(who, std::move(reservation));
          }
          break;
        }
        case 1:
        case 2:
        case 3: {
          if (caller.queue.size() > 50) break;
          caller.queue.push_back({id, bytes, nullptr});
          const MemoryBudget::Admission admission =
              budget.Reserve(std::to_string(who), bytes, [&, who, id](Reservation reservation) {
                ASSERT_EQ(callers[who].queue.front().id, id);
                callers[who].queue.pop_front();
                on_grant(who, std::move(reservation));
                watch(callers[who]);
              });
          if (!caller.queue.empty()) caller.queue.back().waiter = admission.waiter;
          break;
        }
        case 4: {
          if (caller.queue.empty()) break;
          const auto cancels =
              caller.queue.begin() + static_cast<int>(random() % caller.queue.size());
          const std::shared_ptr<MemoryBudget::Waiter> waiter = cancels->waiter;
          caller.queue.erase(cancels);
          watch(caller);
          ASSERT_TRUE(waiter->Cancel());
          break;
        }
        default: {
          if (held.empty()) break;
          const size_t gives = random() % held.size();
          auto [giver, given] = std::move(held[gives]);
          held.erase(held.begin() + static_cast<int>(gives));
          callers[giver].used -= given.bytes();
          watch(callers[giver]);
          given.Release();
        }
      }
      for (Caller& each : callers) watch(each);
      ASSERT_LE(most_overtaken, 1);
    }
    EXPECT_EQ(most_overtaken, 1);
    for (Caller& each : callers) {
      while (!each.queue.empty()) {
        const std::shared_ptr<MemoryBudget::Waiter> waiter = each.queue.back().waiter;
        each.queue.pop_back();
        waiter->Cancel();
      }
    }
  }
}

}  // namespace
}  // namespace gradclip
