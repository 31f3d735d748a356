// A budget against a slow model of it, and its promise to callers who wait.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/memory/budget.h"

namespace gradclip {
namespace {

using Reservation = MemoryBudget::Reservation;

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
