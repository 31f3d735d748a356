#include "tests/chaos/checker.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

using Calls = std::vector<const Call*>;

// One step's calls.
class StepChecker {
 public:
  StepChecker(const Calls& calls, uint32_t world_size, std::vector<std::string>& violations)
      : calls_(calls), world_size_(world_size), violations_(violations) {
    for (const Call* call : calls_) {
      const Told told = WhatIsTold(*call);
      told_[call->attempt][told].push_back(call);
      if (told == Told::kCommitted || told == Told::kOtherTerms) {
        committed_by_[call->attempt].push_back(call);
      }
      if (const auto by = CommittedBy(*call)) committed_by_[*by].push_back(call);
    }
  }

  void Check() {
    for (const auto& [attempt, told] : told_) CheckAttempt(attempt);
    CheckCommittedOnce();
    for (const Call* call : calls_) CheckEnd(*call);
    for (const Call* earlier : calls_) {
      for (const Call* later : calls_) {
        if (earlier->end.has_value() && earlier->end->at < later->begun) {
          CheckAfter(*earlier, *later);
        }
      }
    }
  }

 private:
  const Calls& Of(uint32_t attempt, Told told) { return told_[attempt][told]; }

  void Report(const std::string& what, const Call& call) {
    violations_.push_back(absl::StrCat(what, ":\n  ", Describe(call)));
  }
  void Report(const std::string& what, const Call& one, const Call& other) {
    violations_.push_back(absl::StrCat(what, ":\n  ", Describe(one), "\n  ", Describe(other)));
  }

  void CheckAttempt(uint32_t attempt) {
    for (const Told other : {Told::kAborted, Told::kOver}) {
      if (!committed_by_[attempt].empty() && !Of(attempt, other).empty()) {
        Report("an attempt is both committed and aborted", *committed_by_[attempt][0],
               *Of(attempt, other)[0]);
      }
    }
    const Calls& committed = Of(attempt, Told::kCommitted);
    if (committed.empty()) return;
    const Call* first = committed[0];
    for (const Call* call : committed) {
      if (call->end->at < first->end->at) first = call;
    }
    CheckAnswer(*first);
    for (const Call* call : committed) {
      if (call->end->total_norm != first->end->total_norm ||
          call->end->coefficient != first->end->coefficient) {
        Report("two answers of one attempt differ", *first, *call);
      }
    }
  }

  // That the answer is of all ranks' gradients.
  void CheckAnswer(const Call& committed) {
    std::map<uint32_t, uint64_t> sums;
    for (const Call* call : calls_) {
      if (call->attempt != committed.attempt || call->kind == Call::Kind::kUsurping) continue;
      if (call->begun < committed.end->at) sums[call->rank] = call->sum_of_squares;
    }
    for (uint32_t rank = 0; rank < world_size_; ++rank) {
      if (sums.count(rank) == 0) {
        return Report(absl::StrFormat("committed without a gradient of rank %d", rank), committed);
      }
    }
    uint64_t sum = 0;
    for (const auto& [rank, squares] : sums) sum += squares;
    // Both are whole numbers below 2^53, and sqrt() is correctly rounded.
    const double norm = std::sqrt(static_cast<double>(sum));
    const double coefficient = std::min(1.0, kMaxNorm / (norm + 1e-6));
    if (committed.end->total_norm != norm || committed.end->coefficient != coefficient) {
      Report(absl::StrFormat("the norm of all gradients is %a, the coefficient %a, and not", norm,
                             coefficient),
             committed);
    }
  }

  void CheckCommittedOnce() {
    const Call* known = nullptr;
    for (const auto& [attempt, committed] : committed_by_) {
      if (committed.empty()) continue;
      if (known != nullptr) Report("two attempts of one step are committed", *known, *committed[0]);
      known = committed[0];
    }
  }

  void CheckEnd(const Call& call) {
    const Told told = WhatIsTold(call);
    const bool fits = [&] {
      switch (call.kind) {
        case Call::Kind::kOwn:
          return told != Told::kTaken && told != Told::kOtherTerms;
        case Call::Kind::kUsurping:
          return told == Told::kTaken || told == Told::kUnknown;
        case Call::Kind::kMistaken:
          return told != Told::kTaken && told != Told::kCommitted;
      }
      return false;
    }();
    if (told == Told::kUnexpected || !fits) Report("a call ends as it must not", call);
  }

  void CheckAfter(const Call& earlier, const Call& later) {
    const Told told = WhatIsTold(later);
    if (told == Told::kUnknown) return;
    const Told before = WhatIsTold(earlier);
    if (before != Told::kCommitted && before != Told::kAborted) return;
    if (later.attempt < earlier.attempt && told != Told::kOver) {
      return Report("an attempt goes on after a later one has ended", earlier, later);
    }
    if (before != Told::kCommitted) return;
    if (later.attempt != earlier.attempt) {
      if (told != Told::kOver) Report("a step goes on after its commit", earlier, later);
      return;
    }
    if (later.kind == Call::Kind::kOwn && told != Told::kCommitted) {
      Report("a commit is forgotten", earlier, later);
    }
  }

  const Calls& calls_;
  const uint32_t world_size_;
  std::vector<std::string>& violations_;
  std::map<uint32_t, std::map<Told, Calls>> told_;  // by attempt
  std::map<uint32_t, Calls> committed_by_;          // who says so of an attempt
};

}  // namespace

std::vector<std::string> FindViolations(const std::vector<Call>& calls, uint32_t world_size) {
  std::map<uint64_t, Calls> steps;
  for (const Call& call : calls) steps[call.step].push_back(&call);
  std::vector<std::string> violations;
  for (const auto& [step, of_step] : steps) {
    StepChecker(of_step, world_size, violations).Check();
  }
  return violations;
}

}  // namespace gradclip
