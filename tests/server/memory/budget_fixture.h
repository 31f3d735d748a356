// A budget, and requests to it.
#ifndef GRADCLIP_TESTS_SERVER_MEMORY_BUDGET_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_MEMORY_BUDGET_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/memory/budget.h"

namespace gradclip {

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

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_MEMORY_BUDGET_FIXTURE_H_
