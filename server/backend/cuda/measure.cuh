// What one warp finds in one block: the device's code of the measuring kernel. Lane l of the warp
// is lane l of the block.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_MEASURE_CUH_
#define GRADCLIP_SERVER_BACKEND_CUDA_MEASURE_CUH_

#include "server/backend/cuda/elements.cuh"

namespace gradclip::cuda {

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xffffffff;
static_assert(kLanes == kWarpSize);

// How many elements each lane has on their way from memory at once.
template <DType dtype>
inline constexpr unsigned kInFlight = dtype == DType::kFloat64 ? 16 : 32;

// The largest of all lanes' values, in every lane.
template <typename Unsigned>
__device__ __forceinline__ Unsigned LargestOfWarp(Unsigned value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const Unsigned other = __shfl_xor_sync(kWholeWarp, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

template <typename Unsigned>
__device__ __forceinline__ Unsigned SumOfWarp(Unsigned value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

// Calls take(bits) for the elements lane, lane + 32, ... of `count`, in that order.
template <DType dtype, typename Take>
__device__ __forceinline__ void ForEachOfLane(const BitsOf<dtype>* __restrict__ elements,
                                              unsigned count, unsigned lane, Take take) {
  constexpr unsigned kLoads = kInFlight<dtype>;
  unsigned i = lane;
  for (; i + (kLoads - 1) * kWarpSize < count; i += kLoads * kWarpSize) {
    BitsOf<dtype> batch[kLoads];
#pragma unroll
    for (unsigned load = 0; load < kLoads; ++load) batch[load] = elements[i + load * kWarpSize];
#pragma unroll
    for (unsigned load = 0; load < kLoads; ++load) take(batch[load]);
  }
  if (i >= count) return;
  BitsOf<dtype> rest[kLoads];
#pragma unroll
  for (unsigned load = 0; load < kLoads; ++load) {
    const unsigned at = i + load * kWarpSize;
    rest[load] = at < count ? elements[at] : BitsOf<dtype>{0};
  }
#pragma unroll
  for (unsigned load = 0; load < kLoads; ++load) {
    if (i + load * kWarpSize < count) take(rest[load]);
  }
}

// The sum of the block's terms, in every lane: lanes added as the tree of norm/gradient_norm.cc.
// F64 elements are multiplied by `factor` first.
template <DType dtype, NormKind kind>
__device__ __forceinline__ double SumOfBlock(const BitsOf<dtype>* elements, unsigned count,
                                             unsigned lane, double factor = 1) {
  double sum = 0;
  ForEachOfLane<dtype>(elements, count, lane, [&](BitsOf<dtype> bits) {
    double x = Magnitude<dtype>(bits);
    if constexpr (dtype == DType::kFloat64) x = __dmul_rn(x, factor);
    if constexpr (kind == NormKind::kMagnitudes) {
      sum = __dadd_rn(sum, x);
    } else if constexpr (dtype == DType::kFloat64) {
      sum = __dadd_rn(sum, __dmul_rn(x, x));
    } else {
      // The squares of 24 bits or fewer are exact, so that one rounding is what two are.
      sum = __fma_rn(x, x, sum);
    }
  });
  for (int distance = 16; distance > 0; distance /= 2) {
    sum = __dadd_rn(sum, __shfl_xor_sync(kWholeWarp, sum, distance));
  }
  return sum;
}

// The bits of the double that is the largest magnitude, in every lane.
template <DType dtype>
__device__ __forceinline__ unsigned long long LargestOfBlock(const BitsOf<dtype>* elements,
                                                             unsigned count, unsigned lane) {
  // Patterns without sign order as magnitudes do, NaN above infinity.
  using Pattern = MagnitudeBits<dtype>;
  Pattern largest = 0;
  ForEachOfLane<dtype>(elements, count, lane, [&](BitsOf<dtype> bits) {
    const Pattern magnitude = WithoutSign<dtype>(bits);
    largest = magnitude > largest ? magnitude : largest;
  });
  return __double_as_longlong(Magnitude<dtype>(static_cast<BitsOf<dtype>>(LargestOfWarp(largest))));
}

// Non-finite elements, the first of them, and zeros, in every lane.
struct Counts {
  unsigned nonfinite = 0;
  unsigned first_nonfinite = ~0u;
  unsigned zeros = 0;
};
template <DType dtype>
__device__ Counts CountBlock(const BitsOf<dtype>* elements, unsigned count, unsigned lane) {
  Counts counts;
  unsigned index = lane;
  ForEachOfLane<dtype>(elements, count, lane, [&](BitsOf<dtype> bits) {
    const MagnitudeBits<dtype> magnitude = WithoutSign<dtype>(bits);
    if (magnitude >= kInfinityBits<dtype>) {
      if (counts.nonfinite++ == 0) counts.first_nonfinite = index;
    }
    counts.zeros += magnitude == 0;
    index += kWarpSize;
  });
  counts.nonfinite = SumOfWarp(counts.nonfinite);
  counts.first_nonfinite = ~LargestOfWarp(~counts.first_nonfinite);
  counts.zeros = SumOfWarp(counts.zeros);
  return counts;
}

__device__ __forceinline__ bool IsFinite(unsigned long long magnitude_bits) {
  return magnitude_bits < 0x7ff0000000000000;
}

// All that is to be found in a block. The same in every lane.
template <NormKind kind, DType dtype>
__device__ DeviceBlock MeasureBlock(const void* address, unsigned count, unsigned lane,
                                    bool counts_all) {
  const auto* elements = static_cast<const BitsOf<dtype>*>(address);
  DeviceBlock block = {};
  Counts counts;
  if (counts_all) counts = CountBlock<dtype>(elements, count, lane);
  const auto count_unless_counted = [&] {
    if (!counts_all) counts = CountBlock<dtype>(elements, count, lane);
  };
  if constexpr (kind == NormKind::kLargest) {
    const unsigned long long largest = LargestOfBlock<dtype>(elements, count, lane);
    if (!IsFinite(largest)) count_unless_counted();
    block.sum = __longlong_as_double(largest);
  } else {
    block.sum = SumOfBlock<dtype, kind>(elements, count, lane);
    if (!IsFinite(__double_as_longlong(block.sum))) {
      count_unless_counted();
      if (dtype == DType::kFloat64 && counts.nonfinite == 0) {
        block.sum = SumOfBlock<dtype, kind>(elements, count, lane, 1 / kRescaleFactor);
        block.exponent = kind == NormKind::kSquares ? 2 * kRescaleExponent : kRescaleExponent;
      }
    } else if (dtype == DType::kFloat64 && kind == NormKind::kSquares &&
               block.sum < kSmallestSafeSquares) {
      block.sum = SumOfBlock<dtype, kind>(elements, count, lane, kRescaleFactor);
      block.exponent = -2 * kRescaleExponent;
    }
  }
  block.nonfinite = counts.nonfinite;
  block.first_nonfinite = counts.first_nonfinite;
  block.zeros = counts.zeros;
  return block;
}

}  // namespace gradclip::cuda

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_MEASURE_CUH_
