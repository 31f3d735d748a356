#include "server/rpc/short_call.h"

#include <grpc/grpc.h>

#include <chrono>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "server/rpc/call.h"
#include "server/wire/byte_buffer.h"

namespace gradclip {
namespace {

// Requests name a service, or nothing.
constexpr size_t kMaxRequestBytes = 4096;

absl::Status Gone() {
  return absl::CancelledError("the caller cancelled or went away");
}

}  // namespace

void ShortCall::Begin() {
  absl::Status may = environment_.connection_guard.Begin(peer_);
  environment_.watchdog.AddShort(shared_from_this());
  if (may.ok()) may = Enter();
  if (!may.ok()) return End(may);
  Start();
}

void ShortCall::ReadRequest() {
  if (BeforeOperation(/*last=*/false)) StartRead(&request_);
}

bool ShortCall::Answer(const google::protobuf::MessageLite& response) {
  if (!BeforeOperation(/*last=*/false)) return false;
  grpc::ByteBuffer message = Serialize(response);
  response_.Swap(&message);
  StartWrite(&response_);
  return true;
}

void ShortCall::AnswerAndEnd(const google::protobuf::MessageLite& response) {
  if (!BeforeOperation(/*last=*/true)) return;
  grpc::ByteBuffer message = Serialize(response);
  response_.Swap(&message);
  StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
}

void ShortCall::End(const absl::Status& status) {
  if (!BeforeOperation(/*last=*/true)) return;
  {
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = status;
  }
  Finish(ToGrpcStatus(status));
}

bool ShortCall::BeforeOperation(bool last) {
  const std::lock_guard lock(mutex_);
  if (outstanding_ || ended_ || (cancelled_ && !last)) return false;
  outstanding_ = true;
  outstanding_since_ = std::chrono::steady_clock::now();
  ended_ = last;
  return true;
}

bool ShortCall::AfterOperation() {
  const std::lock_guard lock(mutex_);
  if (ended_) return false;
  outstanding_ = false;
  return !cancelled_;
}

void ShortCall::OnReadDone(bool ok) {
  if (!AfterOperation() || !ok) return End(Gone());
  const ReceivedMessage request(request_);
  if (request.size() > kMaxRequestBytes) {
    return End(absl::InvalidArgumentError(absl::StrFormat(
        "the request has %d bytes; at most %d make sense", request.size(), kMaxRequestBytes)));
  }
  Take(request.Flatten());
}

void ShortCall::OnWriteDone(bool ok) {
  if (!AfterOperation() || !ok) return End(Gone());
  OnWritten();
}

void ShortCall::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  // Where an operation is outstanding, its failure ends the call.
  End(Gone());
}

void ShortCall::OnDone() {
  const std::shared_ptr<ShortCall> self = shared_from_this();
  environment_.watchdog.Remove(this);
  absl::Status status;
  bool expired = false;
  {
    const std::lock_guard lock(mutex_);
    expired = expiring_ != nullptr;
    status = status_.ok() && context_->IsCancelled() ? Gone() : status_;
  }
  const bool cancelled_by_peer =
      context_->IsCancelled() && !expired && !environment_.watchdog.closed();
  environment_.connection_guard.End(peer_, ConnectionGuard::IsReset(cancelled_by_peer, begin_));
  OnEnded(status);
}

bool ShortCall::ShouldExpire(SteadyTime now) {
  const std::lock_guard lock(mutex_);
  if (!outstanding_ || expiring_ != nullptr) return false;
  if (absl::FromChrono(now - outstanding_since_) < environment_.idle_timeout) return false;
  // The context is valid here: OnDone() has to take the call from the watchdog first.
  expiring_ = context_->c_call();
  grpc_call_ref(expiring_);
  status_ = absl::DeadlineExceededError(absl::StrFormat(
      "the caller has neither sent its request nor read the answer for %s (--idle-timeout)",
      absl::FormatDuration(environment_.idle_timeout)));
  return true;
}

void ShortCall::Expire() {
  std::string reason;
  {
    const std::lock_guard lock(mutex_);
    reason = std::string(status_.message());
  }
  grpc_call_cancel_with_status(expiring_, GRPC_STATUS_DEADLINE_EXCEEDED, reason.c_str(), nullptr);
  grpc_call_unref(expiring_);
}

}  // namespace gradclip
