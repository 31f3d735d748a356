#include "server/rpc/call.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

// Measuring less takes less time than waking another thread for the next message.
constexpr size_t kLeastToReadAhead = size_t{64} << 10;

// Work of less shared memory takes less time, or hardly more, than waking the pool's threads and
// having them wait for more, which keeps a processor busy.
constexpr uint64_t kLeastForPool = uint64_t{2} << 20;

// What callers are advised to send.
constexpr uint64_t kUsualMessageBytes = uint64_t{1} << 20;

absl::Status QueueIsFull(MemoryBudget::QueueFull full, const BudgetLimits& limits) {
  constexpr absl::string_view kAdvice =
      "Try later, or use reply REPLY_COEFFICIENT, which needs none";
  if (full == MemoryBudget::QueueFull::kMaxWaiting) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("no memory is free, and %d calls wait for some, of at most %d "
                        "(--max-waiting-calls). %s",
                        limits.max_waiting, limits.max_waiting, kAdvice));
  }
  return absl::ResourceExhaustedError(
      absl::StrFormat("no memory is free for this caller, and %d of its calls wait for some, of at "
                      "most %d (--max-waiting-calls-per-caller). %s",
                      limits.max_waiting_per_caller, limits.max_waiting_per_caller, kAdvice));
}

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

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status Draining() {
  return absl::UnavailableError(
      "the server is draining, because it was told to stop: it takes no new calls. Try again: "
      "another server, or its successor, will");
}

absl::Status Call::CallerLeft() {
  return absl::CancelledError("the caller cancelled or went away");
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

void Call::AdmitBefore(std::function<void()> then) {
  if (absl::Status may = session_.CheckBytesToKeep(); !may.ok()) return End(std::move(may));
  once_admitted_ = std::move(then);
  Admit();
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

void Call::RunWork(void (Call::*then)()) {
  const size_t tasks = session_.work_tasks();
  if (session_.work_waits()) return RunWaitingWork(then);
  if (tasks <= 1 || session_.work_bytes() < kLeastForPool) {
    for (size_t task = 0; task < tasks; ++task) session_.RunTask(task);
    return FinishWork(then);
  }
  const std::shared_ptr<Call> self = shared_from_this();
  environment_.pool.Run(
      tasks, [self](size_t task) { self->session_.RunTask(task); },
      [self, then] { self->FinishWork(then); });
}

void Call::RunWaitingWork(void (Call::*then)()) {
  std::vector<size_t> waiting;
  std::vector<size_t> computing;
  for (size_t task = 0; task < session_.work_tasks(); ++task) {
    (session_.task_waits(task) ? waiting : computing).push_back(task);
  }
  if (waiting.empty() && computing.empty()) return FinishWork(then);
  const std::shared_ptr<Call> self = shared_from_this();
  const auto pools_left =
      std::make_shared<std::atomic<int>>((waiting.empty() ? 0 : 1) + (computing.empty() ? 0 : 1));
  const auto run = [&](WorkerPool& pool, std::vector<size_t> tasks) {
    if (tasks.empty()) return;
    const size_t count = tasks.size();
    pool.Run(
        count,
        [self, tasks = std::move(tasks)](size_t index) { self->session_.RunTask(tasks[index]); },
        [self, then, pools_left] {
          if (pools_left->fetch_sub(1, std::memory_order_acq_rel) == 1) self->FinishWork(then);
        });
  };
  run(*environment_.device_pool, std::move(waiting));
  run(environment_.pool, std::move(computing));
}

void Call::FinishWork(void (Call::*then)()) {
  if (absl::Status finished = session_.FinishWork(); !finished.ok()) {
    return End(std::move(finished));
  }
  (this->*then)();
}

void Call::Admit() {
  if (!DeclareNeed(ArenaBuffer::Footprint(session_.bytes_to_keep()))) return;
  MemoryBudget& budget = environment_.memory->gradients;
  const uint64_t most = budget.limits().max_bytes_per_caller;
  if (session_.bytes_to_keep() > most) {
    return EndForLackOfMemory(absl::ResourceExhaustedError(absl::StrFormat(
        "the gradient has %d bytes; the server keeps at most %d for one caller "
        "(--max-bytes-per-caller). With reply REPLY_COEFFICIENT it keeps none: the caller "
        "multiplies by the coefficient",
        session_.bytes_to_keep(), most)));
  }
  const uint64_t bytes = std::min(ArenaBuffer::Footprint(session_.bytes_to_keep()), most);
  if (bytes == 0) return OnAdmitted();
  MemoryBudget::Reservation free;
  if (budget.TryReserve(caller_.account, bytes, &free)) return Keep(std::move(free));
  BeforeWaiting(Waiting::kForMemory);
  // The grant comes where another call's memory is freed: perhaps amid gRPC, which lets go of a
  // reply's bytes under locks of its own. Hence the watchdog's thread. The call may go on, and end,
  // before Reserve() returns or long after: both hold on to it.
  const std::shared_ptr<Call> self = shared_from_this();
  MemoryBudget::Admission admission =
      budget.Reserve(caller_.account, bytes, [self](MemoryBudget::Reservation granted) {
        const auto held = std::make_shared<MemoryBudget::Reservation>(std::move(granted));
        self->environment_.watchdog.Post([self, held] { self->OnGranted(std::move(*held)); });
      });
  if (admission.refused.has_value()) {
    if (!AfterWaiting()) return End(CallerLeft());
    return EndForLackOfMemory(QueueIsFull(*admission.refused, budget.limits()));
  }
  bool leave = false;
  {
    const std::lock_guard lock(mutex_);
    if (waiting_ == Waiting::kForMemory) {
      waiter_ = std::move(admission.waiter);
      leave = cancelled_ || !expired_.ok();
    }
  }
  if (leave && LeaveQueue()) End(CallerLeft());
}

void Call::EndForLackOfMemory(absl::Status status) {
  {
    const std::lock_guard lock(mutex_);
    lacks_memory_ = true;
  }
  End(std::move(status));
}

void Call::OnGranted(MemoryBudget::Reservation reservation) {
  if (!AfterWaiting()) return End(CallerLeft());
  Keep(std::move(reservation));
}

void Call::Keep(MemoryBudget::Reservation reservation, GroupAdmission::Share share) {
  session_.PrepareToKeep();
  kept_ = std::make_shared<Kept>(
      Kept{environment_.memory, std::move(reservation), std::move(share), session_.gradient()});
  if (once_admitted_ == nullptr) return OnAdmitted();
  const std::function<void()> then = std::exchange(once_admitted_, nullptr);
  then();
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

absl::Status Call::NoMemoryInTime() const {
  const MemoryBudget& budget = environment_.memory->gradients;
  const std::string waited =
      seat_ == nullptr ? absl::StrCat(absl::FormatDuration(environment_.admission_timeout),
                                      " (--admission-timeout)")
                       : absl::StrCat(absl::FormatDuration(environment_.group_admission_timeout),
                                      " (--group-admission-timeout)");
  constexpr absl::string_view kAdvice =
      "Try later, or use reply REPLY_COEFFICIENT, which needs none";
  const uint64_t most = budget.limits().max_bytes_per_caller;
  const uint64_t own = budget.used_bytes(caller_.account);
  const uint64_t bytes = std::min(ArenaBuffer::Footprint(session_.bytes_to_keep()), most);
  if (most < budget.total_bytes() && bytes > most - own) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "waited %s for %d bytes of memory; other calls of this caller hold %d of the %d that one "
        "caller may have (--max-bytes-per-caller). %s",
        waited, session_.bytes_to_keep(), own, most, kAdvice));
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "waited %s for %d bytes of memory; other calls hold %d of the %d there are "
      "(--memory-budget). %s",
      waited, session_.bytes_to_keep(), budget.used_bytes(), budget.total_bytes(), kAdvice));
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
