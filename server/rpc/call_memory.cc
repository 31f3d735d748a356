// Memory for the gradient that a call keeps: its place in the budget, and the wait for one.
#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/rpc/call.h"

namespace gradclip {
namespace {

constexpr absl::string_view kAdvice = "Try later, or use reply REPLY_COEFFICIENT, which needs none";

absl::Status QueueIsFull(MemoryBudget::QueueFull full, const BudgetLimits& limits) {
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

}  // namespace

void Call::AdmitBefore(std::function<void()> then) {
  if (absl::Status may = session_.CheckBytesToKeep(); !may.ok()) return End(std::move(may));
  once_admitted_ = std::move(then);
  Admit();
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

absl::Status Call::NoMemoryInTime() const {
  const MemoryBudget& budget = environment_.memory->gradients;
  const std::string waited =
      seat_ == nullptr ? absl::StrCat(absl::FormatDuration(environment_.admission_timeout),
                                      " (--admission-timeout)")
                       : absl::StrCat(absl::FormatDuration(environment_.group_admission_timeout),
                                      " (--group-admission-timeout)");
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

}  // namespace gradclip
