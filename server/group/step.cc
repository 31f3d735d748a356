#include "server/group/step.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/group/refusals.h"

namespace gradclip {
namespace {

constexpr size_t kShownRanks = 10;

// Up to ten ranks, and how many there are.
struct RankList {
  std::vector<uint32_t> first;
  uint64_t count = 0;

  void Add(uint32_t rank) {
    if (first.size() < kShownRanks) first.push_back(rank);
    ++count;
  }
};

}  // namespace

Step::Step(const Participant& opener, absl::Time now)
    : id_(opener.step),
      terms_(opener.terms),
      terms_rank_(opener.rank),
      world_size_(opener.world_size),
      opened_(now),
      timeout_(opener.timeout),
      timeout_rank_(opener.rank) {}

absl::Status Step::Join(const Participant& participant, absl::Time now) {
  const std::optional<std::string> disagreement =
      Disagreement(participant.terms, participant.rank, terms_, terms_rank_);
  if (state_ == State::kAborted) return aborted_;
  if (state_ == State::kCommitted) {
    if (!disagreement.has_value()) return absl::OkStatus();
    return CommittedWithOtherTerms(id_, *disagreement);
  }
  if (disagreement.has_value()) {
    End(absl::FailedPreconditionError(
        absl::StrCat("ranks must declare the same: ", *disagreement)));
    return aborted_;
  }
  if (participant.timeout < timeout_) {
    timeout_ = participant.timeout;
    timeout_rank_ = participant.rank;
    Tick(now, absl::InfiniteDuration());
    if (state_ != State::kOpen) return aborted_;
  }
  ++ranks_[participant.rank].calls;
  lost_.erase(participant.rank);
  return absl::OkStatus();
}

absl::Status Step::Contribute(uint32_t rank, std::string contribution, uint64_t by) {
  if (state_ == State::kAborted) return aborted_;
  const auto taken = contributions_.find(rank);
  if (taken != contributions_.end()) {
    if (taken->second == contribution) return absl::OkStatus();
    return ContributionTaken(id_, rank);
  }
  contributions_.emplace(rank, std::move(contribution));
  ranks_[rank].by = by;
  lost_.erase(rank);
  if (contributions_.size() == world_size_) Commit();
  return state_ == State::kAborted ? aborted_ : absl::OkStatus();
}

void Step::Commit() {
  absl::StatusOr<Outcome> outcome = Merge(contributions_);
  if (!outcome.ok()) return End(outcome.status());
  outcome_ = std::make_shared<const Outcome>(*std::move(outcome));
  state_ = State::kCommitted;
}

bool Step::IsHeldBy(uint32_t rank, uint64_t by) const {
  return !contributions_.contains(rank) || ranks_.at(rank).by == by;
}

void Step::Leave(uint32_t rank, uint64_t by, Leaving why, absl::Time now, absl::Duration grace) {
  if (state_ != State::kOpen) return;
  Rank& left = ranks_[rank];
  if (left.calls > 0) --left.calls;
  if (!IsHeldBy(rank, by)) return;
  if (why == Leaving::kCancelled) {
    return End(absl::AbortedError(absl::StrCat("rank ", rank, " cancelled its call")));
  }
  if (contributions_.contains(rank) || left.calls > 0) return;
  lost_[rank] = now;
  Tick(now, grace);
}

void Step::Abort(uint32_t rank, uint64_t by, const absl::Status& why) {
  if (IsHeldBy(rank, by)) AbortAll(why);
}

void Step::AbortAll(const absl::Status& why) {
  if (state_ == State::kOpen) End(why);
}

void Step::Tick(absl::Time now, absl::Duration grace) {
  if (state_ != State::kOpen) return;
  if (now >= opened_ + timeout_) {
    return End(absl::DeadlineExceededError(
        absl::StrFormat("%s have passed since its first rank came (timeout of rank %d); %s",
                        absl::FormatDuration(timeout_), timeout_rank_, DescribeMissing())));
  }
  RankList gone;
  for (const auto& [rank, since] : lost_) {
    if (now >= since + grace) gone.Add(rank);
  }
  if (gone.count == 0) return;
  End(absl::AbortedError(
      absl::StrFormat("lost the connection of rank %s, and waited %s (--group-reconnect-grace)",
                      ListRanks(gone.first, gone.count), absl::FormatDuration(grace))));
}

absl::Time Step::deadline(absl::Duration grace) const {
  if (state_ != State::kOpen) return absl::InfiniteFuture();
  absl::Time first = opened_ + timeout_;
  for (const auto& [rank, since] : lost_) first = std::min(first, since + grace);
  return first;
}

void Step::End(const absl::Status& why) {
  state_ = State::kAborted;
  aborted_ = AttemptAborted(id_, why.code(), why.message());
  contributions_.clear();
}

std::string Step::DescribeMissing() const {
  RankList absent;
  RankList sending;
  RankList lost;
  uint32_t next = 0;
  for (const auto& [number, rank] : ranks_) {
    for (; next < number && absent.first.size() < kShownRanks; ++next) absent.Add(next);
    next = number + 1;
    if (contributions_.contains(number)) continue;
    (lost_.contains(number) ? lost : sending).Add(number);
  }
  for (; next < world_size_ && absent.first.size() < kShownRanks; ++next) absent.Add(next);
  absent.count = world_size_ - ranks_.size();
  const std::pair<const char*, const RankList*> kinds[] = {
      {"not come", &absent}, {"sent only part", &sending}, {"lost its connection", &lost}};
  std::vector<std::string> parts;
  for (const auto& [what, ranks] : kinds) {
    if (ranks->count == 0) continue;
    parts.push_back(absl::StrCat(what, ": rank ", ListRanks(ranks->first, ranks->count)));
  }
  return absl::StrFormat("%d of %d ranks are complete; %s", contributions_.size(), world_size_,
                         absl::StrJoin(parts, "; "));
}

}  // namespace gradclip
