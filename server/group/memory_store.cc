#include "server/group/memory_store.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "absl/strings/str_format.h"
#include "server/group/clock.h"
#include "server/group/refusals.h"

namespace gradclip {
namespace {

// What is taken of --max-group-bytes beside names and contributions: the automata with their maps.
constexpr uint64_t kJobBytes = 1024;
constexpr uint64_t kStepBytes = 2048;
constexpr uint64_t kRankBytes = 768;
constexpr uint64_t kSeatBytes = 512;

std::chrono::steady_clock::time_point ToSteady(absl::Time time) {
  return std::chrono::steady_clock::time_point(absl::ToChronoNanoseconds(time - absl::UnixEpoch()));
}

}  // namespace

struct MemoryStore::KeptJob {
  explicit KeptJob(const Participant& opener) : job(opener) {}

  Job job;
  absl::Time used;
  MemoryBudget::Reservation room;
};

struct MemoryStore::KeptStep {
  std::shared_ptr<Step> step;
  KeptJob* job = nullptr;
  std::set<MemorySeat*> waiting;  // that have not been told yet
  std::map<std::string, MemoryBudget::Reservation> room;
  std::optional<absl::Time> ended;
  absl::Time planned = absl::InfiniteFuture();
  bool forgotten = false;
};

class MemoryStore::MemorySeat final : public Store::Seat {
 public:
  MemorySeat(MemoryStore& store, std::shared_ptr<KeptStep> step, uint64_t number,
             const Participant& participant, OnOutcome on_outcome, MemoryBudget::Reservation room)
      : store_(store),
        step_(std::move(step)),
        number_(number),
        rank_(participant.rank),
        account_(participant.account),
        came_late_(step_->step->state() == Step::State::kCommitted),
        room_(std::move(room)),
        on_outcome_(std::move(on_outcome)) {}

  ~MemorySeat() override { store_.Leave(*this, Leaving::kLostConnection); }

  bool came_late() const override { return came_late_; }
  void Contribute(const Contribution& contribution) override {
    store_.Contribute(*this, contribution);
  }
  void Leave(Leaving why) override { store_.Leave(*this, why); }
  void Fail(const absl::Status& why) override { store_.Abort(*this, RankFailed(rank_, why)); }
  void Abort(const absl::Status& why) override { store_.Abort(*this, RankAborts(rank_, why)); }

 private:
  friend class MemoryStore;

  MemoryStore& store_;
  const std::shared_ptr<KeptStep> step_;
  const uint64_t number_;
  const uint32_t rank_;
  const std::string account_;
  const bool came_late_;
  const MemoryBudget::Reservation room_;
  // Guarded by the store's mutex.
  OnOutcome on_outcome_;      // null: told, or gone
  bool contributed_ = false;  // and waits for the others
};

MemoryStore::MemoryStore(const GroupTimes& times, uint64_t max_bytes, std::string instance)
    : times_(times),
      instance_(std::move(instance)),
      budget_(max_bytes, {.max_bytes_per_caller = std::max<uint64_t>(1, max_bytes / 2)}),
      jobs_swept_(SteadyNow()) {
  thread_ = std::thread([this] { Run(); });
}

MemoryStore::~MemoryStore() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::StatusOr<std::shared_ptr<Store::Seat>> MemoryStore::Join(const Participant& participant,
                                                               OnOutcome on_outcome) {
  Deliveries deliveries;
  absl::StatusOr<std::shared_ptr<Seat>> seat = absl::InternalError("");
  {
    const std::lock_guard lock(mutex_);
    const absl::Time now = SteadyNow();
    seat = Sit(participant, std::move(on_outcome), now, deliveries);
  }
  Deliver(deliveries);
  return seat;
}

// Join() under the lock.
absl::StatusOr<std::shared_ptr<Store::Seat>> MemoryStore::Sit(const Participant& participant,
                                                              OnOutcome on_outcome, absl::Time now,
                                                              Deliveries& deliveries) {
  absl::StatusOr<std::shared_ptr<KeptStep>> found = FindOrOpen(participant, now, deliveries);
  if (!found.ok()) return found.status();
  KeptStep& kept = **found;
  MemoryBudget::Reservation room;
  if (absl::Status fits = Reserve(participant.account, kSeatBytes, room); !fits.ok()) return fits;
  if (!kept.step->has_come(participant.rank)) {
    MemoryBudget::Reservation of_rank;
    if (absl::Status fits = Reserve(participant.account, kRankBytes, of_rank); !fits.ok()) {
      return fits;
    }
    kept.room[participant.account].Absorb(std::move(of_rank));
  }
  const absl::Status joined = kept.step->Join(participant, now);
  Settle(kept, now, deliveries);
  if (!joined.ok()) return joined;
  const auto seat = std::make_shared<MemorySeat>(*this, *found, ++seats_, participant,
                                                 std::move(on_outcome), std::move(room));
  kept.waiting.insert(seat.get());
  return seat;
}

absl::StatusOr<std::shared_ptr<MemoryStore::KeptStep>> MemoryStore::FindOrOpen(
    const Participant& participant, absl::Time now, Deliveries& deliveries) {
  const StepId& id = participant.step;
  const auto known = jobs_.find(id.job);
  std::unique_ptr<KeptJob> opened;
  if (known == jobs_.end()) {
    opened = std::make_unique<KeptJob>(participant);
    if (absl::Status fits = Reserve(participant.account, kJobBytes + id.job.size(), opened->room);
        !fits.ok()) {
      return fits;
    }
  }
  KeptJob* const job = opened != nullptr ? opened.get() : known->second.get();
  if (absl::Status may = job->job.Admit(participant); !may.ok()) return may;
  job->used = now;
  absl::StatusOr<std::shared_ptr<Step>> found = job->job.Find(id);
  if (!found.ok()) return found.status();
  if (*found != nullptr) return steps_.at(found->get());
  if (!opening_) return OpensNoSteps(id);

  const auto kept = std::make_shared<KeptStep>();
  kept->job = job;
  // (Making room may forget steps, but no job.)
  if (absl::Status fits =
          Reserve(participant.account, kStepBytes + id.job.size(), kept->room[participant.account]);
      !fits.ok()) {
    return fits;
  }
  kept->step = std::make_shared<Step>(participant, now);
  std::vector<std::shared_ptr<KeptStep>> over;
  for (const std::shared_ptr<Step>& step : job->job.Open(kept->step)) {
    over.push_back(steps_.at(step.get()));
  }
  for (const std::shared_ptr<KeptStep>& step : over) Settle(*step, now, deliveries);
  steps_.emplace(kept->step.get(), kept);
  if (opened != nullptr) jobs_.emplace(id.job, std::move(opened));
  return kept;
}

absl::Status MemoryStore::Reserve(const std::string& account, uint64_t bytes,
                                  MemoryBudget::Reservation& room) {
  while (!budget_.TryReserve(account, bytes, &room)) {
    const bool own_limit =
        bytes > budget_.limits().max_bytes_per_caller - budget_.used_bytes(account);
    if (ForgetOldest(own_limit ? &account : nullptr)) continue;
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the steps and jobs that are kept hold %d of the %d bytes that there are for them "
        "(--max-group-bytes), those of this caller %d of %d, and %d more are needed. Try later",
        budget_.used_bytes(), budget_.total_bytes(), budget_.used_bytes(account),
        budget_.limits().max_bytes_per_caller, bytes));
  }
  return absl::OkStatus();
}

// What has ended is planned for being forgotten, in that order, though amid others.
bool MemoryStore::ForgetOldest(const std::string* account) {
  for (const auto& [when, kept] : planned_) {
    if (!kept->ended.has_value()) continue;
    if (account != nullptr && !kept->room.contains(*account)) continue;
    Forget(*kept);
    return true;
  }
  return false;
}

void MemoryStore::Forget(KeptStep& kept) {
  Plan(kept, absl::InfiniteFuture());
  kept.forgotten = true;
  kept.job->job.Forget(*kept.step);
  kept.room.clear();
  steps_.erase(kept.step.get());
}

void MemoryStore::Settle(KeptStep& kept, absl::Time now, Deliveries& deliveries) {
  const Step& step = *kept.step;
  if (step.state() == Step::State::kOpen) {
    return Plan(kept, step.deadline(times_.reconnect_grace));
  }
  if (!kept.ended.has_value()) {
    kept.ended = now;
    kept.job->job.NoteEnd(step);
    Plan(kept, now + times_.result_ttl);
  }
  for (auto seat = kept.waiting.begin(); seat != kept.waiting.end();) {
    // Another call of a rank whose contribution was taken still has to show that its own is the
    // same.
    if (step.state() == Step::State::kCommitted && !(*seat)->contributed_) {
      ++seat;
      continue;
    }
    deliveries.emplace_back(std::move((*seat)->on_outcome_), AnswerOf(step));
    (*seat)->on_outcome_ = nullptr;
    seat = kept.waiting.erase(seat);
  }
}

absl::StatusOr<std::shared_ptr<const Outcome>> MemoryStore::AnswerOf(const Step& step) {
  if (step.state() == Step::State::kAborted) return step.aborted();
  return step.outcome();
}

void MemoryStore::Plan(KeptStep& kept, absl::Time when) {
  if (kept.forgotten || kept.planned == when) return;
  planned_.erase({kept.planned, &kept});
  kept.planned = when;
  if (when == absl::InfiniteFuture()) return;
  planned_.emplace(when, &kept);
  if (planned_.begin()->second == &kept) changed_.notify_one();
}

void MemoryStore::Contribute(MemorySeat& seat, const Contribution& contribution) {
  std::string serialised = contribution.Serialize();
  Deliveries deliveries;
  {
    const std::lock_guard lock(mutex_);
    if (seat.on_outcome_ == nullptr) return;
    KeptStep& kept = *seat.step_;
    const absl::Time now = SteadyNow();
    const absl::Status taken =
        kept.step->Contribute(seat.rank_, std::move(serialised), seat.number_);
    if (taken.ok()) {
      seat.contributed_ = true;
    } else if (kept.step->state() != Step::State::kAborted) {
      kept.waiting.erase(&seat);
      deliveries.emplace_back(std::move(seat.on_outcome_), taken);
      seat.on_outcome_ = nullptr;
    }
    Settle(kept, now, deliveries);
  }
  Deliver(deliveries);
}

void MemoryStore::Leave(MemorySeat& seat, Leaving why) {
  GoAway(seat, [&](Step& step, absl::Time now) {
    step.Leave(seat.rank_, seat.number_, why, now, times_.reconnect_grace);
  });
}

void MemoryStore::Abort(MemorySeat& seat, const absl::Status& why) {
  GoAway(seat, [&](Step& step, absl::Time) { step.Abort(seat.rank_, seat.number_, why); });
}

void MemoryStore::GoAway(MemorySeat& seat, absl::FunctionRef<void(Step&, absl::Time)> event) {
  Deliveries deliveries;
  OnOutcome dropped;  // destroyed without the lock
  {
    const std::lock_guard lock(mutex_);
    if (seat.on_outcome_ == nullptr) return;
    dropped = std::move(seat.on_outcome_);
    seat.on_outcome_ = nullptr;
    KeptStep& kept = *seat.step_;
    kept.waiting.erase(&seat);
    const absl::Time now = SteadyNow();
    event(*kept.step, now);
    Settle(kept, now, deliveries);
  }
  Deliver(deliveries);
}

void MemoryStore::StopOpening() {
  Deliveries deliveries;
  {
    const std::lock_guard lock(mutex_);
    opening_ = false;
    const absl::Time now = SteadyNow();
    for (const auto& [step, kept] : steps_) {
      if (kept->step->all_have_come()) continue;
      kept->step->AbortAll(absl::AbortedError(
          "the server is stopping, and the ranks that have not come yet would be refused"));
      Settle(*kept, now, deliveries);
    }
  }
  Deliver(deliveries);
}

void MemoryStore::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const absl::Time now = SteadyNow();
    ForgetIdleJobs(now);
    Deliveries deliveries;
    while (!planned_.empty() && planned_.begin()->first <= now) {
      KeptStep& kept = *planned_.begin()->second;
      if (kept.ended.has_value()) {
        Forget(kept);
        continue;
      }
      kept.step->Tick(now, times_.reconnect_grace);
      Settle(kept, now, deliveries);
    }
    if (!deliveries.empty()) {
      lock.unlock();
      Deliver(deliveries);
      lock.lock();
      continue;
    }
    absl::Time next = jobs_swept_ + times_.job_ttl;
    if (!planned_.empty()) next = std::min(next, planned_.begin()->first);
    changed_.wait_until(lock, ToSteady(next));
  }
}

void MemoryStore::ForgetIdleJobs(absl::Time now) {
  // So a job may be kept up to twice as long as it has to be.
  if (now < jobs_swept_ + times_.job_ttl) return;
  jobs_swept_ = now;
  std::erase_if(jobs_, [&](const auto& named) {
    const KeptJob& kept = *named.second;
    return kept.job.empty() && now >= kept.used + times_.job_ttl;
  });
}

void MemoryStore::Deliver(Deliveries& deliveries) {
  for (auto& [on_outcome, answer] : deliveries) on_outcome(std::move(answer));
  deliveries.clear();
}

}  // namespace gradclip
