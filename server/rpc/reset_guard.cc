#include "server/rpc/reset_guard.h"

namespace gradclip {

bool ResetGuard::Note(const std::string& peer, std::chrono::steady_clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (now - second_ >= std::chrono::seconds(1)) {
    resets_.clear();
    second_ = now;
  }
  return ++resets_[peer] == resets_per_second_ + 1;
}

}  // namespace gradclip
