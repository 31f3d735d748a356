// How tensors are cut into blocks and lanes: part of the answer, hence the same for every backend
// and device. Constants and pure functions.
#ifndef GRADCLIP_SERVER_BACKEND_BLOCKS_H_
#define GRADCLIP_SERVER_BACKEND_BLOCKS_H_

#include <cstddef>
#include <cstdint>

namespace gradclip {

// A tensor is cut into blocks of this many elements from its own start; in a block lane l of kLanes
// sums the elements l, l + kLanes, l + 2 kLanes, ... in that order. The order is part of the
// answer: every backend keeps it, so every backend gives the same bits.
inline constexpr size_t kBlockElements = 4096;
inline constexpr size_t kLanes = 32;

constexpr uint64_t BlocksOf(uint64_t elements) {
  return (elements + kBlockElements - 1) / kBlockElements;
}

// F64 blocks whose sum leaves the range of double, or comes so near its lower end that squares lost
// bits, are summed again with their elements multiplied by 2^-600 or 2^600. With 2^-600 the largest
// square is 2^848, and what underflows is nothing beside a sum of at least 2^1023. With 2^600 the
// largest square is below 2^300, and the smallest, 2^-948, is exact. Above 2^-900 what underflowed
// is nothing beside the sum either: less than 2^-1062. Both conditions depend on the block alone.
inline constexpr int kRescaleExponent = 600;
inline constexpr double kRescaleFactor = 0x1p600;
inline constexpr double kSmallestSafeSquares = 0x1p-900;

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_BLOCKS_H_
