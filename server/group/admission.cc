#include "server/group/admission.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gradclip {

struct GroupAdmission::Place::Step {
  // What one rank has said.
  struct Rank {
    std::optional<uint64_t> bytes;
    OnAdmitted on_admitted;  // null: needs nothing, or has been told
  };

  StepId id;
  std::string account;  // of the first rank: whose share of the budget it takes
  uint32_t world_size = 1;

  // Guarded by the admission's mutex.
  std::map<uint32_t, Rank> ranks;  // that have a place
  uint32_t declared = 0;
  uint64_t bytes = 0;  // of those that have declared
  // Since all have, when this is what they needed.
  bool reserving = false;
  std::map<uint32_t, uint64_t> reserved;
  // While they wait.
  std::optional<std::chrono::steady_clock::time_point> waiting_since;
  std::weak_ptr<const MemoryBudget::Reservation> granted;
  std::shared_ptr<MemoryBudget::Waiter> waiter;
};

GroupAdmission::Place::~Place() {
  admission_.Drop(*this);
}

bool GroupAdmission::Place::Declare(uint64_t bytes, OnAdmitted on_admitted) {
  declared_ = true;
  return admission_.Declare(*this, bytes, std::move(on_admitted));
}

std::optional<std::chrono::steady_clock::time_point> GroupAdmission::Place::waiting_since() const {
  const std::lock_guard lock(admission_.mutex_);
  return step_->waiting_since;
}

std::unique_ptr<GroupAdmission::Place> GroupAdmission::Take(const Participant& participant) {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<Step>& known = steps_[participant.step];
  std::shared_ptr<Step> step = known.lock();
  if (step == nullptr) {
    step = std::make_shared<Step>();
    step->id = participant.step;
    step->account = participant.account;
    step->world_size = participant.world_size;
    known = step;
  }
  if (!step->ranks.try_emplace(participant.rank).second) return nullptr;
  return std::unique_ptr<Place>(new Place(*this, std::move(step), participant.rank));
}

bool GroupAdmission::Declare(Place& place, uint64_t bytes, OnAdmitted on_admitted) {
  const std::shared_ptr<Step> step = place.step_;
  Share share;
  {
    const std::lock_guard lock(mutex_);
    Step::Rank& rank = step->ranks.at(place.rank_);
    rank.bytes = bytes;
    step->bytes += bytes;
    ++step->declared;
    if (step->reserving) {
      if (bytes == 0) return true;
      if (bytes > step->reserved[place.rank_]) return false;
      share = step->granted.lock();
      if (share == nullptr && !step->waiting_since.has_value()) return false;
    }
    // A rank that comes back may find its part there, or be in time for it.
    if (share == nullptr) {
      if (bytes > 0) rank.on_admitted = std::move(on_admitted);
      if (step->reserving || step->declared < step->world_size) return true;
      step->reserving = true;
      step->waiting_since = std::chrono::steady_clock::now();
      for (const auto& [number, one] : step->ranks) step->reserved[number] = *one.bytes;
      on_admitted = nullptr;
    }
  }
  if (share == nullptr) {
    Reserve(step);
  } else {
    on_admitted(std::move(share));
  }
  return true;
}

void GroupAdmission::Reserve(const std::shared_ptr<Step>& step) {
  uint64_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    bytes = step->bytes;
  }
  const auto tell = [this, step](const absl::StatusOr<Share>& answer) {
    std::vector<OnAdmitted> waiting;
    {
      const std::lock_guard lock(mutex_);
      if (answer.ok()) step->granted = *answer;
      step->waiting_since.reset();
      step->waiter = nullptr;
      for (auto& [number, rank] : step->ranks) {
        if (rank.on_admitted == nullptr) continue;
        waiting.push_back(std::exchange(rank.on_admitted, nullptr));
      }
    }
    for (const OnAdmitted& on_admitted : waiting) on_admitted(answer);
  };
  const uint64_t most = budget_.limits().max_bytes_per_caller;
  if (bytes > most) {
    return tell(absl::ResourceExhaustedError(absl::StrFormat(
        "%s: its %d ranks need %d bytes together; the server keeps at most %d for one caller "
        "(--max-bytes-per-caller, --memory-budget). With reply REPLY_COEFFICIENT it keeps none",
        step->id.Describe(), step->world_size, bytes, most)));
  }
  MemoryBudget::Admission admission =
      budget_.Reserve(step->account, bytes, [tell](MemoryBudget::Reservation granted) {
        tell(std::make_shared<const MemoryBudget::Reservation>(std::move(granted)));
      });
  if (admission.refused.has_value()) {
    return tell(absl::ResourceExhaustedError(
        absl::StrCat(step->id.Describe(), ": no memory is free for its ", bytes,
                     " bytes, and as many wait as may (",
                     *admission.refused == MemoryBudget::QueueFull::kMaxWaiting
                         ? "--max-waiting-calls"
                         : "--max-waiting-calls-per-caller",
                     ")")));
  }
  const std::lock_guard lock(mutex_);
  if (step->waiting_since.has_value()) step->waiter = std::move(admission.waiter);
}

void GroupAdmission::Drop(Place& place) {
  std::shared_ptr<MemoryBudget::Waiter> waiter;
  OnAdmitted dropped;
  {
    const std::lock_guard lock(mutex_);
    Step& step = *place.step_;
    const auto found = step.ranks.find(place.rank_);
    if (found->second.bytes.has_value()) {
      step.bytes -= *found->second.bytes;
      --step.declared;
    }
    dropped = std::move(found->second.on_admitted);
    step.ranks.erase(found);
    if (step.ranks.empty()) {
      waiter = std::move(step.waiter);
      steps_.erase(step.id);
    }
  }
  if (waiter != nullptr) waiter->Cancel();
}

}  // namespace gradclip
