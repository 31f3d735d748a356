#include "tests/server/group/store_contract.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <thread>

#include "absl/time/clock.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr absl::Duration kShort = absl::Seconds(2);

// Settles the store after each thing that happens.
class SettledStore final : public Store {
 public:
  SettledStore(std::unique_ptr<Store> store, std::function<void(Store&)> settle)
      : store_(std::move(store)), settle_(std::move(settle)) {}

  absl::StatusOr<std::shared_ptr<Seat>> Join(const Participant& participant,
                                             OnOutcome on_outcome) override {
    absl::StatusOr<std::shared_ptr<Seat>> seat = store_->Join(participant, std::move(on_outcome));
    Settle();
    if (!seat.ok()) return seat.status();
    return std::make_shared<SettledSeat>(*this, *std::move(seat));
  }
  bool spans_servers() const override { return store_->spans_servers(); }
  std::vector<Endpoint> endpoints() const override { return store_->endpoints(); }
  std::string instance() const override { return store_->instance(); }
  void StopOpening() override { store_->StopOpening(); }

 private:
  class SettledSeat final : public Seat {
   public:
    SettledSeat(SettledStore& store, std::shared_ptr<Seat> seat)
        : store_(store), seat_(std::move(seat)) {}
    ~SettledSeat() override {
      seat_.reset();
      store_.Settle();
    }

    bool came_late() const override { return seat_->came_late(); }
    void Contribute(const Contribution& contribution) override {
      seat_->Contribute(contribution);
      store_.Settle();
    }
    void Leave(Leaving why) override {
      seat_->Leave(why);
      store_.Settle();
    }
    void Fail(const absl::Status& why) override {
      seat_->Fail(why);
      store_.Settle();
    }
    void Abort(const absl::Status& why) override {
      seat_->Abort(why);
      store_.Settle();
    }

   private:
    SettledStore& store_;
    std::shared_ptr<Seat> seat_;
  };

  void Settle() { settle_(*store_); }

  const std::unique_ptr<Store> store_;
  const std::function<void(Store&)> settle_;
};

}  // namespace

void StoreContract::Make(const GroupTimes& times, bool in_order) {
  stores_ = GetParam().make(times, 3);
  if (!in_order || GetParam().settle == nullptr) return;
  for (std::unique_ptr<Store>& store : stores_) {
    store = std::make_unique<SettledStore>(std::move(store), GetParam().settle);
  }
}

namespace {

TEST_P(StoreContract, TellsAllRanksTheSameNorm) {
  Make();
  Call first = Join(Rank(0));
  Call second = Join(Rank(1));
  ASSERT_TRUE(first.seat.ok() && second.seat.ok());
  EXPECT_FALSE((*first.seat)->came_late());
  (*first.seat)->Contribute(Of(9, 2, "\"w\"[3]"));
  EXPECT_FALSE(first.told.yet());
  (*second.seat)->Contribute(Of(16, 1, "\"w\"[0]"));
  for (const Call* call : {&first, &second}) {
    const Told::Answer answer = call->Get();
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ((*answer)->total.Norm(), 5);
    EXPECT_EQ((*answer)->nonfinite_elements, 3u);
    EXPECT_EQ((*answer)->first_nonfinite, "\"w\"[3] of rank 0");
  }
}

TEST_P(StoreContract, AGroupOfOneWaitsForNobody) {
  Make();
  Call call = Join(Rank(0, 1));
  ASSERT_TRUE(call.seat.ok());
  (*call.seat)->Contribute(Of(4));
  ASSERT_TRUE(call.Get().ok());
  EXPECT_EQ((*call.Get())->total.Norm(), 2);
}

TEST_P(StoreContract, TheOrderOfArrivalChangesNoBit) {
  Make();
  constexpr uint32_t kRanks = 7;
  std::mt19937_64 random(7);
  for (const double norm_type : {2.0, 3.0, double{INFINITY}}) {
    std::vector<Contribution> contributions(kRanks);
    for (Contribution& contribution : contributions) {
      contribution.partial = NormPartial(norm_type);
      for (int i = 0; i < 100; ++i) {
        const double value = std::ldexp(std::generate_canonical<double, 53>(random), i % 40 - 20);
        if (norm_type == 2) contribution.partial.AddSum(value, 0);
        if (norm_type == 3) contribution.partial.AddScaled(value, 1 + value * 0x1p-30);
        if (std::isinf(norm_type)) contribution.partial.AddLargest(value);
      }
    }
    std::optional<double> norm;
    std::vector<uint32_t> order(kRanks);
    std::iota(order.begin(), order.end(), 0u);
    for (uint64_t round = 0; round < 5; ++round) {
      std::shuffle(order.begin(), order.end(), random);
      std::vector<Call> calls;
      for (const uint32_t rank : order) {
        Participant participant = Rank(rank, kRanks, round);
        participant.step.job = absl::StrCat(job_, norm_type);
        calls.push_back(Join(participant));
        ASSERT_TRUE(calls.back().seat.ok()) << calls.back().seat.status();
        (*calls.back().seat)->Contribute(contributions[rank]);
      }
      for (const Call& call : calls) {
        const Told::Answer answer = call.Get();
        ASSERT_TRUE(answer.ok()) << answer.status();
        if (!norm.has_value()) norm = (*answer)->total.Norm();
        EXPECT_EQ((*answer)->total.Norm(), *norm);
      }
    }
  }
}

TEST_P(StoreContract, RanksThatDisagreeAreAllToldWhichAndAboutWhat) {
  Make();
  Call first = Join(Rank(0, 3));
  Call second = Join(Rank(1, 3));
  Participant other = Rank(2, 3);
  other.terms[2].value = "2.5";
  const Call third = Join(other);
  for (const Call* call : {&std::as_const(first), &std::as_const(second), &third}) {
    const absl::Status status = call->status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("job \"", job_, "\", step 1, attempt 0")),
                      HasSubstr("max_norm is 2.5 at rank 2 and 1 at rank 0")));
  }
}

TEST_P(StoreContract, AWrongSecretIsRefusedAndDisturbsNobody) {
  Make();
  Call first = Join(Rank(0));
  Participant stranger = Rank(1);
  stranger.secret_hash = std::string(32, 't');
  const absl::Status refused = Join(stranger).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("group.job_secret"));
  // Nor by what it says of generation and attempt.
  stranger.step.generation = 5;
  EXPECT_EQ(Join(stranger).status().code(), absl::StatusCode::kPermissionDenied);
  Call second = Join(Rank(1));
  (*first.seat)->Contribute(Of(9));
  (*second.seat)->Contribute(Of(16));
  EXPECT_TRUE(first.Get().ok());
  EXPECT_TRUE(second.Get().ok());
}

TEST_P(StoreContract, TheTimeoutNamesWhoIsMissing) {
  Make();
  Participant hurried = Rank(2, 30);
  hurried.timeout = kShort;
  Call complete = Join(Rank(1, 30));
  Call sending = Join(hurried);
  (*complete.seat)->Contribute(Of(1));
  for (const Call* call : {&complete, &sending}) {
    const absl::Status status = call->status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("2s have passed since its first rank came (timeout of rank 2)"),
                      HasSubstr("1 of 30 ranks are complete"),
                      HasSubstr("not come: rank 0, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 18 more"),
                      HasSubstr("sent only part: rank 2")));
  }
}

TEST_P(StoreContract, ALostRankMayComeBack) {
  GroupTimes times;
  times.reconnect_grace = absl::Minutes(1);
  Make(times);
  Call first = Join(Rank(0));
  Call lost = Join(Rank(1));
  (*first.seat)->Contribute(Of(9));
  (*lost.seat)->Leave(Leaving::kLostConnection);
  EXPECT_FALSE(first.told.yet());
  Call back = Join(Rank(1));
  (*back.seat)->Contribute(Of(16));
  EXPECT_TRUE(first.Get().ok());
  EXPECT_TRUE(back.Get().ok());
  EXPECT_FALSE(lost.told.yet());
}

TEST_P(StoreContract, ALostRankThatDoesNotComeBackAbortsTheStep) {
  GroupTimes times;
  times.reconnect_grace = kShort;
  Make(times);
  Call first = Join(Rank(0));
  (*first.seat)->Contribute(Of(9));
  { const Call dropped = Join(Rank(1)); }
  const absl::Status status = first.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("lost the connection of rank 1, and waited 2s"));
}

TEST_P(StoreContract, ALostConnectionMattersOnlyWhereItsRankHasNoOtherCall) {
  GroupTimes times;
  times.reconnect_grace = absl::ZeroDuration();
  Make(times);
  Call first = Join(Rank(0));
  Call lost = Join(Rank(1));
  Call again = Join(Rank(1));
  (*lost.seat)->Leave(Leaving::kLostConnection);
  (*again.seat)->Contribute(Of(16));
  // Nor where it has contributed.
  (*again.seat)->Leave(Leaving::kLostConnection);
  EXPECT_FALSE(first.told.yet());
  (*first.seat)->Contribute(Of(9));
  EXPECT_TRUE(first.Get().ok());
}

TEST_P(StoreContract, ACancelledCallAbortsTheStepAtOnce) {
  Make();
  uint64_t step = 0;
  for (const bool contributes : {false, true}) {
    Call first = Join(Rank(0, 2, ++step));
    Call second = Join(Rank(1, 2, step));
    if (contributes) (*second.seat)->Contribute(Of(1));
    (*second.seat)->Leave(Leaving::kCancelled);
    const absl::Status status = first.status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 cancelled its call"));
  }
}

TEST_P(StoreContract, ACallThatFailsAbortsTheStep) {
  Make();
  Call first = Join(Rank(0));
  Call second = Join(Rank(1));
  (*second.seat)->Fail(absl::InvalidArgumentError("the call ended early"));
  EXPECT_EQ(first.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(first.status().message()),
              HasSubstr("rank 1 failed: INVALID_ARGUMENT: the call ended early"));
}

TEST_P(StoreContract, ACallMayEndTheAttemptWithAStatusForAll) {
  Make();
  Call first = Join(Rank(0));
  Call second = Join(Rank(1));
  (*second.seat)->Abort(absl::ResourceExhaustedError("no memory"));
  EXPECT_EQ(first.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(first.status().message()), HasSubstr("rank 1: no memory"));
}

TEST_P(StoreContract, WhoAsksAgainIsToldTheSame) {
  Make();
  Call first = Join(Rank(0));
  Call second = Join(Rank(1));
  (*first.seat)->Contribute(Of(9));
  // While the step is open,
  Call again = Join(Rank(0));
  EXPECT_FALSE((*again.seat)->came_late());
  (*again.seat)->Contribute(Of(9));
  (*second.seat)->Contribute(Of(16));
  EXPECT_TRUE(first.Get().ok());
  EXPECT_TRUE(again.Get().ok());
  // and after it, which a new call changes nothing about however it ends.
  for (int i = 0; i < 2; ++i) {
    Call late = Join(Rank(1));
    ASSERT_TRUE(late.seat.ok());
    EXPECT_EQ((*late.seat)->came_late(), !StoreOf(1).spans_servers());
    (*late.seat)->Contribute(Of(16));
    ASSERT_TRUE(late.Get().ok());
    EXPECT_EQ((*late.Get())->total.Norm(), 5);
    Call gone = Join(Rank(1));
    (*gone.seat)->Leave(Leaving::kCancelled);
  }
}

TEST_P(StoreContract, AnotherContributionOfARankIsRefusedAndDisturbsNobody) {
  Make();
  Call first = Join(Rank(0));
  Call second = Join(Rank(1));
  Call impostor = Join(Rank(0));
  (*first.seat)->Contribute(Of(9));
  (*impostor.seat)->Contribute(Of(10));
  EXPECT_EQ(impostor.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(impostor.status().message()), HasSubstr("contribution of rank 0"));
  Call cancelled = Join(Rank(0));
  (*cancelled.seat)->Leave(Leaving::kCancelled);
  Call failed = Join(Rank(0));
  (*failed.seat)->Fail(absl::InternalError("x"));
  EXPECT_FALSE(first.told.yet());
  (*second.seat)->Contribute(Of(16));
  EXPECT_TRUE(first.Get().ok());
  EXPECT_TRUE(second.Get().ok());
  // And after it.
  Call late = Join(Rank(0));
  (*late.seat)->Contribute(Of(10));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kAlreadyExists);
  // With other terms.
  Participant other = Rank(0);
  other.terms[2].value = "3";
  EXPECT_EQ(Join(other).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(StoreContract, AnAbortedAttemptStaysAbortedAndTheNextMayBegin) {
  Make();
  Call first = Join(Rank(0));
  (*first.seat)->Leave(Leaving::kCancelled);
  const absl::Status again = Join(Rank(1)).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(again.message()), HasSubstr("rank 0 cancelled its call"));

  Call one = Join(Rank(0, 2, 1, /*attempt=*/1));
  const absl::Status lower = Join(Rank(1)).status();
  EXPECT_EQ(lower.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(lower.message()),
              HasSubstr("that attempt is over, the step is at attempt 1"));
  Call two = Join(Rank(1, 2, 1, 1));
  (*one.seat)->Contribute(Of(9));
  (*two.seat)->Contribute(Of(16));
  EXPECT_TRUE(one.Get().ok());
  EXPECT_TRUE(two.Get().ok());
  // A committed step is not tried again.
  const absl::Status higher = Join(Rank(0, 2, 1, 2)).status();
  EXPECT_EQ(higher.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(higher.message()), HasSubstr("was committed by attempt 1"));
}

TEST_P(StoreContract, AHigherAttemptAbortsOneThatIsOpen) {
  Make();
  Call old = Join(Rank(0));
  Call next = Join(Rank(1, 2, 1, 3));
  EXPECT_EQ(old.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(old.status().message()), HasSubstr("attempt 3 of the step has begun"));
  EXPECT_FALSE(next.told.yet());
}

TEST_P(StoreContract, AHigherGenerationEndsTheOneBefore) {
  Make();
  Call done = Join(Rank(0, 1, 7));
  (*done.seat)->Contribute(Of(1));
  EXPECT_TRUE(done.Get().ok());
  Call old = Join(Rank(0, 2, 8));
  // Restarted from a checkpoint: its steps are lower.
  Participant restarted = Rank(1, 2, 3);
  restarted.step.generation = 1;
  Call young = Join(restarted);
  EXPECT_EQ(old.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(old.status().message()), HasSubstr("generation 1 of the job has begun"));
  const absl::Status late = Join(Rank(1, 2, 8)).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(late.message()),
              HasSubstr("that generation is over, the job is at generation 1"));
  restarted.rank = 0;
  Call partner = Join(restarted);
  (*young.seat)->Contribute(Of(9));
  (*partner.seat)->Contribute(Of(16));
  EXPECT_TRUE(young.Get().ok());
}

TEST_P(StoreContract, WhatIsForgottenIsNotOpenedAgain) {
  GroupTimes times;
  times.result_ttl = absl::Milliseconds(500);
  Make(times);
  Call committed = Join(Rank(0, 1, 5));
  (*committed.seat)->Contribute(Of(4));
  EXPECT_TRUE(committed.Get().ok());
  Call aborted = Join(Rank(0, 2, 6, 2));
  (*aborted.seat)->Leave(Leaving::kCancelled);
  absl::SleepFor(absl::Seconds(1));
  for (const Participant& late :
       {Rank(0, 1, 5), Rank(0, 1, 5, 1), Rank(0, 1, 4), Rank(1, 2, 6, 2), Rank(1, 2, 6, 1)}) {
    const absl::Status status = Join(late).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << late.step.Describe();
    EXPECT_THAT(std::string(status.message()), HasSubstr("--group-result-ttl"));
  }
  Call next = Join(Rank(0, 1, 6, 3));
  (*next.seat)->Contribute(Of(4));
  EXPECT_TRUE(next.Get().ok());
}

TEST_P(StoreContract, SeveralStepsOfAJobMayBeOpen) {
  Make();
  Call late = Join(Rank(1, 2, 1));
  Call early = Join(Rank(0, 2, 2));
  Call first = Join(Rank(0, 2, 1));
  (*late.seat)->Contribute(Of(1));
  (*first.seat)->Contribute(Of(3));
  EXPECT_EQ((*late.Get())->total.Norm(), 2);
  EXPECT_FALSE(early.told.yet());
}

// However ranks come, leave and come again: no attempt is both committed and aborted, and all that
// are told of a committed one are told the same.
TEST_P(StoreContract, HoldsItsGuaranteeAmidAllKindsOfEvents) {
  GroupTimes times;
  times.reconnect_grace = absl::Milliseconds(2);
  Make(times, /*in_order=*/false);
  constexpr uint32_t kRanks = 4;
  constexpr uint64_t kSteps = 150;
  struct Answers {
    std::vector<double> norms;
    uint64_t aborts = 0;
  };
  std::mutex mutex;
  std::map<std::pair<uint64_t, uint32_t>, Answers> answers;  // by step and attempt
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      std::mt19937_64 random(rank);
      for (uint64_t step = 0; step < kSteps; ++step) {
        for (uint32_t attempt = 0;;) {
          Participant participant = Rank(rank, kRanks, step, attempt);
          participant.timeout = absl::Milliseconds(200);
          Call call = Join(participant);
          bool asks_again = false;
          if (call.seat.ok()) {
            const uint64_t dice = random() % 40;
            if (dice == 0) (*call.seat)->Leave(Leaving::kCancelled);
            if (dice == 1) (*call.seat)->Leave(Leaving::kLostConnection);
            if (dice == 2) (*call.seat)->Fail(absl::InternalError("dice"));
            (*call.seat)->Contribute(Of(static_cast<double>(rank + step)));
            if (dice == 3) (*call.seat)->Leave(Leaving::kLostConnection);
            if (dice == 4) (*call.seat)->Leave(Leaving::kCancelled);
            asks_again = dice < 5;
          }
          if (asks_again) continue;
          const Told::Answer answer = call.Get();
          const std::lock_guard lock(mutex);
          Answers& of_attempt = answers[{step, attempt}];
          if (answer.ok()) {
            of_attempt.norms.push_back((*answer)->total.Norm());
            break;
          }
          if (answer.status().code() == absl::StatusCode::kFailedPrecondition) {
            // Others are at a higher attempt already.
            ++attempt;
            continue;
          }
          ASSERT_TRUE(absl::IsAborted(answer.status()) || absl::IsDeadlineExceeded(answer.status()))
              << answer.status();
          ++of_attempt.aborts;
          ++attempt;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t committed = 0;
  for (const auto& [attempt, told] : answers) {
    if (told.norms.empty()) continue;
    ++committed;
    EXPECT_EQ(told.aborts, 0u);
    EXPECT_EQ(told.norms.size(), kRanks);
    EXPECT_EQ(std::count(told.norms.begin(), told.norms.end(), told.norms.front()), kRanks);
  }
  EXPECT_EQ(committed, kSteps);
}

}  // namespace
}  // namespace gradclip
