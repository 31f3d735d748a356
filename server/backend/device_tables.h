// What hosts and devices exchange, laid out alike on both: which elements to measure, and what was
// found. Plain data.
#ifndef GRADCLIP_SERVER_BACKEND_DEVICE_TABLES_H_
#define GRADCLIP_SERVER_BACKEND_DEVICE_TABLES_H_

#include <cstdint>

#include "gradclip/dtype.h"
#include "server/backend/blocks.h"
#include "server/backend/fixed_point.h"

namespace gradclip {

// What is measured, by the p of the p-norm. Devices have no others.
enum class NormKind : uint8_t { kMagnitudes, kSquares, kLargest };  // p = 1, 2, infinity

// Elements of one tensor that follow one another, from a block's start. Only where they end with
// the tensor may their last block be short.
struct DeviceRun {
  uint64_t address = 0;  // in the device's memory, or in a slot; a multiple of the element's size
  uint64_t elements = 0;
  uint64_t first_block = 0;  // how many blocks the runs before it have in all
  DType dtype = DType::kFloat32;
  bool counted = true;  // false: left out of the tally (replicas)
};

// What was found among the counted elements of some runs.
struct DeviceTally {
  static constexpr uint64_t kNone = ~uint64_t{0};

  uint64_t digits[kFixedPointSlots];  // of the block sums, as in FixedPointSum; p = 1 and 2
  uint64_t largest;                   // bits of the double that is the largest magnitude; p = inf
  uint64_t blocks;                    // how many were added: fewer than 2^30
  uint64_t nonfinite_sums;            // how many were infinite or NaN, and so are not in `digits`,
  uint64_t nan_sums;                  // and how many of them were NaN
  uint64_t nonfinite;                 // elements that are NaN or infinite
  uint64_t first_nonfinite;  // of them: its block's number among all, times kBlockElements, plus
                             // its index in the block; kNone where there is none
};

// What was found in one block, counted or not. Asked for with per_block.
struct DeviceBlock {
  double sum;  // of the block's terms, times 2^exponent; its largest magnitude for p = infinity
  int32_t exponent;  // not 0 for rescaled blocks of F64
  uint32_t nonfinite;
  uint32_t first_nonfinite;  // index in the block; meaningless where nonfinite is 0
  uint32_t zeros;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_DEVICE_TABLES_H_
