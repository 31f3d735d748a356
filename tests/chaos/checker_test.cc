#include "tests/chaos/checker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace gradclip {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = Call::Kind;

absl::Time At(int seconds) {
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

// A call of step 1 with a gradient whose squares sum to `squares`.
Call Begin(uint32_t rank, int begun, uint32_t attempt = 0, uint64_t squares = 8) {
  return {
      .rank = rank, .step = 1, .attempt = attempt, .sum_of_squares = squares, .begun = At(begun)};
}

Call Ended(Call call, int ended, const absl::Status& status) {
  call.end = Call::End{.at = At(ended), .status = status};
  return call;
}

// With the answer for two ranks with squares of 8 each, or another.
Call Committed(Call call, int ended, double norm = 4) {
  call.end = Call::End{.at = At(ended), .total_norm = norm, .coefficient = 1};
  return call;
}

Call OfKind(Kind kind, Call call) {
  call.kind = kind;
  return call;
}

const absl::Status kAborted = absl::AbortedError("the step, attempt 0 is aborted: rank 1 failed");
const absl::Status kOver =
    absl::FailedPreconditionError("the step: that attempt is over, the step is at attempt 1");
const absl::Status kByAttempt0 = absl::FailedPreconditionError(
    "the step, attempt 1: the step was committed by attempt 0; ask again with that one");
const absl::Status kTaken = absl::AlreadyExistsError("taken");
const absl::Status kLost = absl::UnavailableError("connection reset");
const absl::Status kLate = absl::DeadlineExceededError("Deadline Exceeded");

std::vector<std::string> Check(const std::vector<Call>& calls) {
  return FindViolations(calls, /*world_size=*/2);
}

TEST(Checker, FindsNothingInWhatTheGuaranteeAllows) {
  EXPECT_THAT(Check({}), IsEmpty());
  EXPECT_THAT(Check({
                  Ended(Begin(0, 1), 3, kAborted),
                  Begin(1, 1),  // killed
                  Ended(Begin(1, 2), 4, kOver),
                  Committed(Begin(0, 5, 1), 8),
                  Ended(Begin(1, 5, 1), 6, kLost),
                  Ended(Begin(1, 6, 1), 7, kLate),
                  Committed(Begin(1, 9, 1), 10),  // asks again
                  Ended(OfKind(Kind::kUsurping, Begin(1, 11, 1, 9)), 12, kTaken),
                  Ended(Begin(0, 13, 0), 14, kOver),
                  Committed({.rank = 0, .step = 2, .sum_of_squares = 8, .begun = At(15)}, 17),
                  Committed({.rank = 1, .step = 2, .sum_of_squares = 8, .begun = At(16)}, 18),
              }),
              IsEmpty());
}

TEST(Checker, FindsAnAttemptThatIsBothCommittedAndAborted) {
  for (const absl::Status& other : {kAborted, kOver}) {
    EXPECT_THAT(Check({Committed(Begin(0, 1), 4), Ended(Begin(1, 2), 3, other)}),
                ElementsAre(HasSubstr("an attempt is both committed and aborted")));
  }
}

TEST(Checker, TakesARefusalsWordForACommit) {
  EXPECT_THAT(Check({Ended(Begin(0, 1, 1), 3, kByAttempt0), Ended(Begin(1, 1), 2, kAborted)}),
              ElementsAre(HasSubstr("an attempt is both committed and aborted")));
  const absl::Status other_terms = absl::FailedPreconditionError(
      "the step, attempt 0 is committed, and was with other options: max_norm");
  EXPECT_THAT(Check({Ended(OfKind(Kind::kMistaken, Begin(0, 1)), 3, other_terms),
                     Ended(Begin(1, 1), 2, kAborted)}),
              ElementsAre(HasSubstr("an attempt is both committed and aborted")));
}

TEST(Checker, FindsAnswersThatDiffer) {
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3), Committed(Begin(1, 2), 4, 5)}),
              ElementsAre(HasSubstr("two answers of one attempt differ")));
  Call other_coefficient = Committed(Begin(1, 2), 4);
  other_coefficient.end->coefficient = 0.5;
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3), other_coefficient}),
              ElementsAre(HasSubstr("two answers of one attempt differ")));
}

TEST(Checker, FindsANormThatIsNotThatOfAllGradients) {
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3, std::sqrt(8)), Begin(1, 2)}),
              ElementsAre(HasSubstr("the norm of all gradients is 0x1p+2")));
  // Rank 1 began too late for it.
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3), Begin(1, 4)}),
              ElementsAre(HasSubstr("committed without a gradient of rank 1")));
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3), Begin(1, 2, /*attempt=*/1)}),
              ElementsAre(HasSubstr("committed without a gradient of rank 1")));
}

TEST(Checker, FindsASecondCommit) {
  EXPECT_THAT(
      Check({Committed(Begin(0, 1), 3), Begin(1, 1), Begin(0, 1, 1), Committed(Begin(1, 2, 1), 4)}),
      ElementsAre(HasSubstr("two attempts of one step are committed")));
}

TEST(Checker, FindsAStepThatGoesOnAfterItsCommit) {
  const std::vector<Call> committed = {Committed(Begin(0, 1), 3), Begin(1, 1)};
  const auto check_with = [&](const Call& later) {
    std::vector<Call> calls = committed;
    calls.push_back(later);
    return Check(calls);
  };
  EXPECT_THAT(check_with(Ended(Begin(1, 4, 1), 5, kByAttempt0)), IsEmpty());
  EXPECT_THAT(check_with(Ended(Begin(1, 4, 1), 5, kAborted)),
              ElementsAre(HasSubstr("a step goes on after its commit")));
  EXPECT_THAT(check_with(Ended(Begin(1, 4, 2), 5,
                               absl::FailedPreconditionError(
                                   "x: the step was committed by attempt 1; ask again"))),
              ElementsAre(HasSubstr("two attempts of one step are committed")));
  // At the same time either may come first.
  EXPECT_THAT(check_with(Ended(Begin(1, 2, 1), 5, kByAttempt0)), IsEmpty());
}

TEST(Checker, FindsAnAttemptThatGoesOnAfterALaterOneHasEnded) {
  EXPECT_THAT(Check({Ended(Begin(0, 1, 1), 2, kAborted), Ended(Begin(1, 3, 0), 4, kAborted)}),
              ElementsAre(HasSubstr("an attempt goes on after a later one has ended")));
}

TEST(Checker, FindsStatusesThatFitNoFault) {
  const std::vector<Call> wrong = {
      Ended(Begin(0, 1), 2, absl::InternalError("?")),
      Ended(Begin(0, 1), 2, absl::FailedPreconditionError("?")),
      Ended(Begin(0, 1), 2, absl::InternalError("the step is aborted: ?")),
      Ended(Begin(0, 1), 2, kTaken),
      Ended(OfKind(Kind::kUsurping, Begin(0, 1)), 2, kAborted),
  };
  for (const Call& call : wrong) {
    EXPECT_THAT(Check({call}), ElementsAre(HasSubstr("a call ends as it must not")))
        << Describe(call);
  }
}

TEST(Checker, TakesTheLibrarysOwnAbortForUnknown) {
  const absl::Status restarted = absl::AbortedError(
      "the server was restarted amid step 1 of the job, attempt 0, and has forgotten it (instance "
      "a, "
      "before b): whether the step was committed is not known. All ranks may go on");
  EXPECT_THAT(Check({Committed(Begin(0, 1), 3), Ended(Begin(1, 2), 4, restarted)}), IsEmpty());
}

}  // namespace
}  // namespace gradclip
