// How a budget is shared out among callers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/memory/budget_fixture.h"

namespace gradclip {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

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

}  // namespace
}  // namespace gradclip
