#include "server/group/job.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/group/refusals.h"

namespace gradclip {
namespace {

// Steps beyond the last committed one whose aborted attempts are remembered. Ranks that go on
// together are at one or two.
constexpr size_t kMostAborted = 64;

}  // namespace

Job::Job(const Participant& opener)
    : secret_hash_(opener.secret_hash), generation_(opener.step.generation) {}

absl::Status Job::Admit(const Participant& participant) const {
  const StepId& id = participant.step;
  const std::string& given = participant.secret_hash;
  if (given.size() != secret_hash_.size() ||
      CRYPTO_memcmp(given.data(), secret_hash_.data(), given.size()) != 0) {
    return WrongSecret(id);
  }
  if (id.generation < generation_) return GenerationIsOver(id, generation_);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Step>> Job::Find(const StepId& id) const {
  if (id.generation > generation_) return nullptr;
  const auto found = steps_.find(id.step);
  if (found != steps_.end()) {
    const std::shared_ptr<Step>& known = found->second;
    if (id.attempt == known->id().attempt) return known;
    if (id.attempt < known->id().attempt) return AttemptIsOver(id, known->id().attempt);
    if (known->state() == Step::State::kCommitted) {
      return CommittedByAttempt(id, known->id().attempt);
    }
  }
  if (any_over_ && id.step <= over_) return StepIsForgotten(id, over_);
  const auto aborted = aborted_.find(id.step);
  if (aborted != aborted_.end() && id.attempt <= aborted->second) {
    return AttemptIsForgotten(id, aborted->second);
  }
  return nullptr;
}

std::vector<std::shared_ptr<Step>> Job::Open(std::shared_ptr<Step> step) {
  std::vector<std::shared_ptr<Step>> ended;
  const StepId& id = step->id();
  const auto end = [&](const std::shared_ptr<Step>& over, const std::string& why) {
    if (over->state() != Step::State::kOpen) return;
    over->AbortAll(absl::AbortedError(why));
    ended.push_back(over);
  };
  if (id.generation > generation_) {
    for (const auto& [number, over] : steps_) {
      end(over, absl::StrCat("generation ", id.generation, " of the job has begun"));
    }
    steps_.clear();
    generation_ = id.generation;
    any_over_ = false;
    aborted_.clear();
  }
  std::shared_ptr<Step>& place = steps_[id.step];
  if (place != nullptr) {
    end(place, absl::StrCat("attempt ", id.attempt, " of the step has begun"));
    NoteEnd(*place);
  }
  place = std::move(step);
  return ended;
}

void Job::NoteEnd(const Step& step) {
  const StepId& id = step.id();
  if (id.generation != generation_ || (any_over_ && id.step <= over_)) return;
  if (step.state() == Step::State::kAborted) {
    uint32_t& attempt = aborted_[id.step];
    attempt = std::max(attempt, id.attempt);
    if (aborted_.size() <= kMostAborted) return;
    over_ = aborted_.begin()->first;
  } else {
    over_ = id.step;
  }
  any_over_ = true;
  aborted_.erase(aborted_.begin(), aborted_.upper_bound(over_));
}

void Job::Forget(const Step& step) {
  const auto found = steps_.find(step.id().step);
  if (found != steps_.end() && found->second.get() == &step) steps_.erase(found);
}

}  // namespace gradclip
