// How many calls may be in progress, in all and of one caller. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_CALL_LIMITS_H_
#define GRADCLIP_SERVER_RPC_CALL_LIMITS_H_

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/statusor.h"

namespace gradclip {

class CallLimits {
 public:
  // --max-calls and --max-calls-per-caller
  CallLimits(uint64_t calls, uint64_t calls_per_caller)
      : max_calls_(calls), max_calls_per_caller_(calls_per_caller) {}
  // The last call has ended, on another thread: gRPC keeps the order, and the lock shows it.
  ~CallLimits() { const std::lock_guard lock(mutex_); }

  // A call's place, given back on destruction. Movable; must not outlive the limits.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept
        : limits_(std::exchange(other.limits_, nullptr)), caller_(std::move(other.caller_)) {}
    Place& operator=(Place&& other) noexcept {
      std::swap(limits_, other.limits_);
      std::swap(caller_, other.caller_);
      return *this;
    }
    ~Place() {
      if (limits_ != nullptr) limits_->Leave(caller_);
    }

   private:
    friend class CallLimits;
    Place(CallLimits* limits, std::string caller) : limits_(limits), caller_(std::move(caller)) {}

    CallLimits* limits_ = nullptr;  // null: none
    std::string caller_;
  };

  // RESOURCE_EXHAUSTED where `caller` has as many calls in progress as one may have, UNAVAILABLE
  // where all callers together have.
  absl::StatusOr<Place> Enter(const std::string& caller);

  uint64_t calls() const;

 private:
  void Leave(const std::string& caller);

  const uint64_t max_calls_;
  const uint64_t max_calls_per_caller_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  uint64_t calls_ = 0;
  std::unordered_map<std::string, uint64_t> of_caller_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CALL_LIMITS_H_
