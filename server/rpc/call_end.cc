// How a call ends: with its answer or an error, because it has waited for too long, or because its
// caller has left.
#include <grpc/grpc.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/rpc/call.h"

namespace gradclip {
namespace {

std::string_view ReplyName(v1::ReplyMode reply) {
  switch (reply) {
    case v1::REPLY_GRADIENT:
      return "gradient";
    case v1::REPLY_GRADIENT_IF_CHANGED:
      return "gradient_if_changed";
    default:
      return "coefficient";
  }
}

}  // namespace

absl::Status Call::CallerLeft() {
  return absl::CancelledError("the caller cancelled or went away");
}

bool Call::LeaveQueue() {
  if (StopWaitingForRanks()) return true;
  std::shared_ptr<MemoryBudget::Waiter> waiter;
  {
    const std::lock_guard lock(mutex_);
    waiter = std::move(waiter_);
  }
  return waiter != nullptr && waiter->Cancel();
}

void Call::OnCancelled() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (seat_ != nullptr) connection_lost_ = environment_.connection_lost(peer_, host_);
  }
  session_.Abandon();
  // Otherwise an operation is outstanding, and its failure ends the call.
  if (LeaveQueue()) End(CallerLeft());
}

void Call::BeforeWaiting(Waiting what) {
  const std::lock_guard lock(mutex_);
  waiting_ = what;
  waiting_since_ = std::chrono::steady_clock::now();
}

bool Call::AfterWaiting() {
  const std::lock_guard lock(mutex_);
  const bool was_queued = waiting_ == Waiting::kForMemory;
  waiting_ = Waiting::kForNothing;
  waiter_ = nullptr;
  // A cancelled call whose operation succeeded goes on until one fails; one that comes from the
  // queue for memory has no operation that could.
  return expired_.ok() && !(was_queued && cancelled_);
}

bool Call::ShouldExpire(SteadyTime now) {
  const std::lock_guard lock(mutex_);
  if (waiting_ == Waiting::kForNothing) return false;
  if (!expired_.ok()) {
    if (!std::exchange(to_expire_, false)) return false;
    HoldForExpiry();
    return true;
  }
  SteadyTime since = waiting_since_;
  absl::Duration limit = environment_.idle_timeout;
  if (waiting_ == Waiting::kForMemory) {
    limit =
        seat_ == nullptr ? environment_.admission_timeout : environment_.group_admission_timeout;
  } else if (waiting_ == Waiting::kForRanks) {
    // The step has a timeout of its own.
    const std::optional<SteadyTime> waiting =
        place_ == nullptr ? std::nullopt : place_->waiting_since();
    if (!waiting.has_value()) return false;
    since = *waiting;
    limit = environment_.group_admission_timeout;
  }
  if (absl::FromChrono(now - since) < limit) return false;
  expired_ = ExpiryReason();
  lacks_memory_ = waiting_ == Waiting::kForMemory || waiting_ == Waiting::kForRanks;
  HoldForExpiry();
  return true;
}

void Call::HoldForExpiry() {
  if (waiting_ == Waiting::kForMemory || waiting_ == Waiting::kForRanks) return;
  // The context is valid here: OnEnded() has to take the call from the watchdog first.
  expiring_ = context_->c_call();
  grpc_call_ref(expiring_);
}

void Call::Break(absl::Status why) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_ || !expired_.ok()) return;
    expired_ = std::move(why);
    // A reaction that is at work may go on to wait again; the watchdog looks after that.
    to_expire_ = waiting_ == Waiting::kForNothing;
    if (to_expire_) return;
    HoldForExpiry();
  }
  Expire();
}

absl::Status Call::ExpiryReason() const {
  const std::string idle = absl::FormatDuration(environment_.idle_timeout);
  switch (waiting_) {
    case Waiting::kForMemory:
    case Waiting::kForRanks:
      return NoMemoryInTime();
    case Waiting::kForReader:
      if (session_.passes_through()) {
        return absl::DeadlineExceededError(absl::StrFormat(
            "the caller has read nothing for %s (--idle-timeout). With total_norm given, clipped "
            "bytes come back while later ones are sent: read while you write",
            idle));
      }
      return absl::DeadlineExceededError(
          absl::StrFormat("the caller has read nothing for %s (--idle-timeout)", idle));
    default:
      return absl::DeadlineExceededError(
          absl::StrFormat("the caller has sent no whole message for %s (--idle-timeout), after %d "
                          "bytes of gradient",
                          idle, session_.received_bytes()));
  }
}

bool Call::DeadlineHasPassed() const {
  // The caller cancels when its own clock says so. The deadline here is what was left of it when it
  // was sent, which gRPC rounds up by up to a hundredth, counted from when it arrived.
  const auto late =
      (std::chrono::steady_clock::now() - begin_) / 50 + std::chrono::milliseconds(20);
  return context_->deadline() - late <= std::chrono::system_clock::now();
}

absl::Status Call::WhyCancelled() const {
  if (DeadlineHasPassed()) return absl::DeadlineExceededError("the caller's deadline has passed");
  if (!ended_short_) return CallerLeft();
  return absl::CancelledError(absl::StrFormat(
      "the caller cancelled or went away after %d of %d bytes (or sent a message several times "
      "over "
      "the limit of %d, --max-message-bytes, which is refused unread)",
      session_.received_bytes(), session_.spec().gradient_bytes, environment_.max_message_bytes));
}

void Call::Expire() {
  if (LeaveQueue()) return End(absl::OkStatus());
  grpc_call* call = nullptr;
  absl::Status reason;
  {
    const std::lock_guard lock(mutex_);
    std::swap(call, expiring_);
    reason = expired_;
  }
  if (call == nullptr) return;
  // Finish() would queue behind bytes that the peer does not read; this goes past them, and the
  // outstanding operation fails.
  grpc_call_cancel_with_status(call, static_cast<grpc_status_code>(reason.code()),
                               std::string(reason.message()).c_str(), nullptr);
  grpc_call_unref(call);
}

void Call::End(absl::Status status) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    to_expire_ = false;
    // A peer that reads nothing may hold up the status, and with it all that the call holds.
    waiting_ = Waiting::kForReader;
    waiting_since_ = std::chrono::steady_clock::now();
    if (!expired_.ok()) status = expired_;
    final_status_ = status;
  }
  StartFinish(ToGrpcStatus(status));
}

void Call::NoteEndsWell() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
}

void Call::OnEnded() {
  const std::shared_ptr<Call> self = shared_from_this();
  environment_.watchdog.Remove(this);
  CallRecord record;
  bool expired = false;
  {
    const std::lock_guard lock(mutex_);
    expired = !expired_.ok();
    record.status = expired ? expired_ : final_status_;
  }
  if (seat_ != nullptr) LeaveGroup(record.status, context_->IsCancelled() && !expired);
  const bool cancelled_by_peer =
      context_->IsCancelled() && !expired && !environment_.watchdog.closed();
  environment_.connection_guard.End(peer_, ConnectionGuard::IsReset(cancelled_by_peer, begin_));
  entry_.place = CallLimits::Place();
  // What the caller did not live to see, or gRPC sent in its place.
  if (context_->IsCancelled() &&
      (record.status.ok() || absl::IsCancelled(record.status) || ended_short_)) {
    record.status = WhyCancelled();
  }
  record.call_id = id_;
  record.peer = peer_;
  record.caller = caller_.identity;
  record.rpc = rpc_;
  record.trace = TraceOf(*context_);
  record.bytes_in = session_.received_bytes() - session_.shared_bytes();
  record.shared_bytes = session_.shared_bytes();
  record.bytes_out = bytes_out_;
  record.milliseconds =
      absl::ToDoubleMilliseconds(absl::FromChrono(std::chrono::steady_clock::now() - begin_));
  if (session_.started()) {
    record.tensors = session_.spec().tensors.size();
    record.fell_back = session_.fell_back();
    record.backend = session_.result().norm().backend();
    if (session_.clips()) record.reply = ReplyName(session_.spec().reply);
    if (const std::optional<Participant>& group = session_.spec().group; group.has_value()) {
      record.group = {group->step.job,  group->step.generation,
                      group->step.step, group->step.attempt,
                      group->rank,      group->world_size};
      const std::lock_guard lock(mutex_);
      record.group_outcome = group_outcome_;
      // The store is told of it, and tells the others.
      if (!group_outcome_.has_value() && lacks_memory_) {
        record.group_outcome = absl::StatusCode::kResourceExhausted;
      }
    }
  }
  if (session_.decided()) {
    const v1::ClipResult& result = session_.result();
    record.nonfinite_norm = !std::isfinite(result.norm().total_norm());
    record.nonfinite_elements = result.norm().nonfinite_elements();
    record.clipped = session_.clips() && result.clipped();
    record.skipped = session_.clips() && result.skipped();
  }
  if (record.status.ok()) {
    record.norm = session_.result().norm().total_norm();
    if (session_.clips()) record.coefficient = session_.result().coefficient();
  }
  environment_.Ended(record);
}

}  // namespace gradclip
