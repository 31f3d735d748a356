// What a call does as a rank of a group: takes a place in its step, waits for memory and for the
// outcome together with the others, and leaves.
#include <algorithm>
#include <utility>

#include "server/rpc/call.h"

namespace gradclip {

bool Call::JoinGroup() {
  Participant participant = *session_.spec().group;
  participant.timeout = std::min(participant.timeout, environment_.group_timeout);
  participant.account = caller_.account;
  const std::shared_ptr<Call> self = shared_from_this();
  absl::StatusOr<std::shared_ptr<Store::Seat>> seat = environment_.groups.Join(
      participant, [self](absl::StatusOr<std::shared_ptr<const Outcome>> outcome) {
        self->OnOutcome(std::move(outcome));
      });
  if (!seat.ok()) {
    {
      const std::lock_guard lock(mutex_);
      group_outcome_ = seat.status().code();
    }
    End(seat.status());
    return false;
  }
  std::unique_ptr<GroupAdmission::Place> place;
  if (!environment_.groups.spans_servers() && !(*seat)->came_late()) {
    place = environment_.group_admission.Take(participant);
  }
  const std::lock_guard lock(mutex_);
  seat_ = *std::move(seat);
  environment_.group_calls.fetch_add(1, std::memory_order_relaxed);
  place_ = std::move(place);
  host_ = HostOf(*context_);
  if (cancelled_) connection_lost_ = environment_.connection_lost(peer_, host_);
  return true;
}

bool Call::DeclareNeed(uint64_t bytes) {
  if (place_ == nullptr || place_->declared()) return true;
  if (bytes > 0 && !BeginWaitingForRanks()) {
    End(CallerLeft());
    return false;
  }
  // The grant comes where memory is freed or another rank declares; see Admit().
  const std::shared_ptr<Call> self = shared_from_this();
  const bool comes = place_->Declare(bytes, [self](absl::StatusOr<GroupAdmission::Share> share) {
    self->environment_.watchdog.Post(
        [self, share = std::move(share)]() mutable { self->OnGroupAdmitted(std::move(share)); });
  });
  return comes ? bytes == 0 : StopWaitingForRanks();
}

void Call::OnGroupAdmitted(absl::StatusOr<GroupAdmission::Share> share) {
  if (!StopWaitingForRanks()) return;
  if (share.ok()) return Keep({}, *std::move(share));
  EndForLackOfMemory(share.status());
}

void Call::Contribute() {
  DeclareNeed(0);
  const std::shared_ptr<Call> self = shared_from_this();
  const std::shared_ptr<Store::Seat> seat = seat_;
  const Contribution contribution = session_.contribution();
  if (!BeginWaitingForRanks()) return End(CallerLeft());
  seat->Contribute(contribution);
}

void Call::OnOutcome(absl::StatusOr<std::shared_ptr<const Outcome>> outcome) {
  {
    const std::lock_guard lock(mutex_);
    group_outcome_ = outcome.status().code();
  }
  if (!outcome.ok()) return Break(outcome.status());
  if (!StopWaitingForRanks()) return;
  if (absl::Status concluded = session_.Conclude(**outcome); !concluded.ok()) {
    return End(std::move(concluded));
  }
  Conclude();
}

bool Call::BeginWaitingForRanks() {
  const std::lock_guard lock(mutex_);
  if (cancelled_ || !expired_.ok()) return false;
  waiting_ = Waiting::kForRanks;
  waiting_since_ = std::chrono::steady_clock::now();
  return true;
}

bool Call::StopWaitingForRanks() {
  const std::lock_guard lock(mutex_);
  if (waiting_ != Waiting::kForRanks) return false;
  waiting_ = Waiting::kForNothing;
  return true;
}

void Call::LeaveGroup(const absl::Status& status, bool cancelled) {
  bool lost = false;
  bool lacks_memory = false;
  {
    const std::lock_guard lock(mutex_);
    lost = connection_lost_;
    lacks_memory = lacks_memory_;
  }
  // A caller that has come to its deadline may close the connection, too. Where this server stops,
  // ranks may go on with another.
  lost = (lost && !DeadlineHasPassed()) || environment_.watchdog.closed();
  if (lacks_memory) {
    seat_->Abort(status);
  } else if (cancelled) {
    seat_->Leave(lost ? Leaving::kLostConnection : Leaving::kCancelled);
  } else if (!status.ok()) {
    seat_->Fail(status);
  }
  place_.reset();
  seat_.reset();
  environment_.group_calls.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace gradclip
