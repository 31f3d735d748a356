// Durations as Redis takes them. A pure function.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_MILLISECONDS_H_
#define GRADCLIP_SERVER_GROUP_REDIS_MILLISECONDS_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace gradclip {

// Rounded up, from 0 to a hundred years.
inline int64_t ToMilliseconds(absl::Duration duration) {
  const absl::Duration bounded =
      std::clamp(duration, absl::ZeroDuration(), absl::Hours(24 * 365 * 100));
  return absl::ToInt64Milliseconds(absl::Ceil(bounded, absl::Milliseconds(1)));
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_MILLISECONDS_H_
