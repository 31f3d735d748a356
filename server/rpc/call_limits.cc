#include "server/rpc/call_limits.h"

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace gradclip {

absl::StatusOr<CallLimits::Place> CallLimits::Enter(const std::string& caller) {
  const std::lock_guard lock(mutex_);
  if (calls_ >= max_calls_) {
    return absl::UnavailableError(absl::StrFormat(
        "the server has %d calls in progress, as many as may be (--max-calls); try again", calls_));
  }
  uint64_t& own = of_caller_[caller];
  if (own >= max_calls_per_caller_) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "this caller has %d calls in progress, as many as one may have (--max-calls-per-caller); "
        "wait for some of them to end",
        own));
  }
  ++own;
  ++calls_;
  return Place(this, caller);
}

void CallLimits::Leave(const std::string& caller) {
  const std::lock_guard lock(mutex_);
  --calls_;
  const auto own = of_caller_.find(caller);
  if (--own->second == 0) of_caller_.erase(own);
}

uint64_t CallLimits::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

}  // namespace gradclip
