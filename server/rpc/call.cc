#include "server/rpc/call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

// Measuring less takes less time than waking another thread for the next message.
constexpr size_t kLeastToReadAhead = size_t{64} << 10;

// What callers are advised to send.
constexpr uint64_t kUsualMessageBytes = uint64_t{1} << 20;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status Draining() {
  return absl::UnavailableError(
      "the server is draining, because it was told to stop: it takes no new calls. Try again: "
      "another server, or its successor, will");
}

Call::Call(Environment& environment, grpc::CallbackServerContext* context, std::string_view rpc)
    : environment_(environment),
      session_({.backend = environment.backend,
                .arenas = environment.memory->arenas,
                .max_call_bytes = environment.max_call_bytes,
                .regions = environment.regions,
                .max_ranges = environment.declaration_limits.max_ranges,
                .devices = environment.devices,
                .host_on_device_error = environment.host_on_device_error}),
      context_(context),
      rpc_(rpc),
      id_(environment.next_call_id.fetch_add(1, std::memory_order_relaxed)),
      peer_(context->peer()),
      begin_(std::chrono::steady_clock::now()) {}

void Call::Begin() {
  const absl::Status guarded = environment_.connection_guard.Begin(peer_);
  if (!environment_.watchdog.Add(shared_from_this())) return End(Draining());
  if (absl::Status may = guarded.ok() ? Enter() : guarded; !may.ok()) return End(std::move(may));
  Read();
}

absl::Status Call::Enter() {
  absl::StatusOr<Caller> caller = CallerOf(*context_, environment_);
  if (!caller.ok()) return caller.status();
  caller_ = *std::move(caller);
  absl::StatusOr<Entry> entry = gradclip::Enter(caller_, environment_);
  if (!entry.ok()) return entry.status();
  entry_ = *std::move(entry);
  return absl::OkStatus();
}

absl::Status Call::MayUseJob(const std::string& job) const {
  return entry_.permission == nullptr ? absl::OkStatus()
                                      : CheckJob(*entry_.permission, caller_.identity, job);
}

absl::Status Call::MaySendGradient() const {
  return entry_.permission == nullptr ? absl::OkStatus()
                                      : CheckGradientBytes(*entry_.permission, caller_.identity,
                                                           session_.spec().gradient_bytes);
}

void Call::Read() {
  BeforeWaiting(Waiting::kForSender);
  StartReading(&incoming_);
}

void Call::OnRead(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    if (measuring_) {
      has_come_ = ok;
      return;
    }
  }
  GoOn(TakeRead(ok));
}

void Call::GoOn(bool again) {
  for (bool ok = true; again && NextHasCome(&ok);) again = TakeRead(ok);
}

bool Call::NextHasCome(bool* ok) {
  const std::lock_guard lock(mutex_);
  measuring_ = false;
  if (has_come_.has_value()) {
    *ok = *has_come_;
    has_come_.reset();
    return true;
  }
  waiting_ = Waiting::kForSender;
  waiting_since_ = std::chrono::steady_clock::now();
  return false;
}

bool Call::TakeRead(bool ok) {
  if (!AfterWaiting()) {
    End(absl::OkStatus());
  } else if (ok) {
    return TakeMessage();
  } else if (absl::Status closed = session_.HalfClose(); !closed.ok()) {
    // The caller has half-closed, or it has left, or gRPC has refused a message and cancels the
    // call; OnEnded() knows more.
    ended_short_ = true;
    End(std::move(closed));
  } else if (context_->IsCancelled()) {
    End(CallerLeft());
  } else if (seat_ != nullptr) {
    Contribute();
  } else {
    Conclude();
  }
  return false;
}

void Call::Conclude() {
  session_.ScaleShared();
  RunWork(&Call::Answer);
}

bool Call::TakeMessage() {
  ReceivedMessage message(incoming_);
  if (message.size() > environment_.max_message_bytes) {
    End(absl::ResourceExhaustedError(absl::StrFormat(
        "a message has %d bytes; the limit is %d (--max-message-bytes). Send the gradient in more "
        "and smaller messages, such as of %d bytes",
        message.size(), environment_.max_message_bytes,
        std::min(kUsualMessageBytes, environment_.max_message_bytes / 2))));
    return false;
  }
  Pieces pieces = message.pieces();
  if (StripDataHeader(pieces)) {
    if (session_.bytes_to_keep() == 0) return TakeData(pieces);
    const auto held = std::make_shared<ReceivedMessage>(std::move(message));
    AdmitBefore([this, held, pieces] { GoOn(TakeData(pieces)); });
    return false;
  }

  const std::string serialised = message.Flatten();
  const absl::StatusOr<uint64_t> bytes =
      BoundParsedBytes(serialised, environment_.declaration_limits);
  if (!bytes.ok()) {
    End(bytes.status());
    return false;
  }
  MemoryBudget& declared = environment_.memory->declarations;
  const uint64_t most = declared.limits().max_bytes_per_caller;
  if (*bytes > most) {
    End(absl::ResourceExhaustedError(absl::StrFormat(
        "a start message may need %d bytes once it is parsed; the limit is %d (a sixteenth of "
        "--memory-budget, at least 64 MiB). Declare fewer tensors, or shorter names",
        *bytes, most)));
    return false;
  }
  MemoryBudget::Reservation declarations;
  if (!declared.TryReserve(caller_.account, *bytes, &declarations)) {
    End(absl::UnavailableError(
        absl::StrFormat("the declarations of the calls in progress hold %d of the %d bytes set "
                        "aside for them, those "
                        "of this caller %d of the %d for one, and this one may need %d; try again, "
                        "or declare fewer "
                        "tensors (--memory-budget)",
                        declared.used_bytes(), declared.total_bytes(),
                        declared.used_bytes(caller_.account), most, *bytes)));
    return false;
  }
  TakeRequest(serialised, std::move(declarations));
  return false;
}

bool Call::TakeData(const Pieces& pieces) {
  uint64_t bytes = 0;
  for (const auto& piece : pieces) bytes += piece.size();
  if (absl::Status may = session_.CheckMayReceive(bytes); !may.ok()) {
    End(std::move(may));
    return false;
  }
  if (session_.passes_through() || bytes < kLeastToReadAhead) {
    TakeAlone(pieces);
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    measuring_ = true;
  }
  StartReading(&incoming_);
  return Measure(pieces);
}

void Call::TakeAlone(const Pieces& pieces) {
  if (session_.passes_through()) return PassThrough(pieces);
  if (Measure(pieces)) Read();
}

bool Call::Measure(const Pieces& pieces) {
  for (const std::span<const std::byte> piece : pieces) {
    if (absl::Status taken = session_.Data(piece); !taken.ok()) {
      End(std::move(taken));
      return false;
    }
  }
  return true;
}

void Call::TakeShared(const v1::SharedRanges& ranges) {
  if (entry_.permission != nullptr) {
    if (absl::Status may = CheckSharedMemory(*entry_.permission, caller_.identity); !may.ok()) {
      return End(std::move(may));
    }
  }
  if (absl::Status taken = session_.Shared(ranges); !taken.ok()) return End(std::move(taken));
  DeclareNeed(0);  // data that comes beside it finds memory alone
  RunWork(&Call::Read);
}

}  // namespace gradclip
