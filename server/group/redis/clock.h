// Time as the store of Redis measures it on its own side: only ever differences. Pure functions.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_CLOCK_H_
#define GRADCLIP_SERVER_GROUP_REDIS_CLOCK_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace gradclip {

inline absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

// Rounded up, from 0 to a hundred years.
inline int64_t ToMilliseconds(absl::Duration duration) {
  const absl::Duration bounded =
      std::clamp(duration, absl::ZeroDuration(), absl::Hours(24 * 365 * 100));
  return absl::ToInt64Milliseconds(absl::Ceil(bounded, absl::Milliseconds(1)));
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_CLOCK_H_
