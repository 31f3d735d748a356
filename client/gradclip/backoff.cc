#include "client/gradclip/backoff.h"

#include <algorithm>
#include <cmath>

namespace gradclip {

absl::Duration Backoff(int failed, absl::Duration initial, absl::Duration most, double random) {
  return std::min(initial * std::ldexp(1.0, std::min(failed - 1, 1000)), most) * (0.5 + random / 2);
}

}  // namespace gradclip
