// Whether tensors share memory. Thread-safe: functions only.
#ifndef GRADCLIP_CLIENT_GRADCLIP_OVERLAP_H_
#define GRADCLIP_CLIENT_GRADCLIP_OVERLAP_H_

#include <span>

#include "absl/status/status.h"
#include "gradclip/client.h"

namespace gradclip {

// INVALID_ARGUMENT, naming two of them, where tensors overlap in memory: what is clipped in place
// would be clipped twice there. For 4,000 tensors 0.02 ms where their addresses ascend, 0.2 ms
// where they have to be sorted. REQUIRES: shapes have been checked.
absl::Status CheckOverlap(std::span<const Tensor> tensors);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_OVERLAP_H_
