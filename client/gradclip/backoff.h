// How long a client waits before it tries a failed call again. Pure functions.
#ifndef GRADCLIP_CLIENT_GRADCLIP_BACKOFF_H_
#define GRADCLIP_CLIENT_GRADCLIP_BACKOFF_H_

#include "absl/time/time.h"

namespace gradclip {

// The wait after the `failed`th try: `initial`, doubled with each try up to `most`, times a number
// from 0.5 to 1, so that clients that failed together do not come back together. REQUIRES: failed
// is 1 or more, and `random` at least 0 and less than 1.
absl::Duration Backoff(int failed, absl::Duration initial, absl::Duration most, double random);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_BACKOFF_H_
