// Time as stores measure it on a server's own side, by a clock that nobody sets: only ever
// differences. A pure function.
#ifndef GRADCLIP_SERVER_GROUP_CLOCK_H_
#define GRADCLIP_SERVER_GROUP_CLOCK_H_

#include <chrono>

#include "absl/time/time.h"

namespace gradclip {

inline absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_CLOCK_H_
