// Elements on a device, one at a time: to double exactly, and multiplied and rounded as
// Backend::Scale() says.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_ELEMENTS_CUH_
#define GRADCLIP_SERVER_BACKEND_CUDA_ELEMENTS_CUH_

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "gradclip/dtype.h"
#include "server/backend/element.h"

namespace gradclip::cuda {

// An element as it lies in memory.
template <DType dtype>
using BitsOf =
    std::conditional_t<dtype == DType::kFloat64, unsigned long long,
                       std::conditional_t<dtype == DType::kFloat32, unsigned, unsigned short>>;

// Its bits without the sign, in what a device computes with.
template <DType dtype>
using MagnitudeBits = std::conditional_t<dtype == DType::kFloat64, unsigned long long, unsigned>;

template <DType dtype>
inline constexpr HalfFormat kHalfFormat =
    dtype == DType::kFloat16 ? kFloat16Format : kBFloat16Format;

template <DType dtype>
inline constexpr MagnitudeBits<dtype> kInfinityBits =
    dtype == DType::kFloat64   ? MagnitudeBits<dtype>(0x7ff0000000000000)
    : dtype == DType::kFloat32 ? MagnitudeBits<dtype>(0x7f800000)
                               : MagnitudeBits<dtype>(kHalfFormat<dtype>.infinity);

template <DType dtype>
__device__ __forceinline__ MagnitudeBits<dtype> WithoutSign(BitsOf<dtype> bits) {
  constexpr MagnitudeBits<dtype> kSign = MagnitudeBits<dtype>(1) << (8 * sizeof(BitsOf<dtype>) - 1);
  return bits & (kSign - 1);
}

// |x| as a double. Of F16 and BF16 normal numbers are widened by integer operations: a conversion
// is one of the operations on doubles, of which many devices have few.
template <DType dtype>
__device__ __forceinline__ double Magnitude(BitsOf<dtype> bits) {
  const MagnitudeBits<dtype> magnitude = WithoutSign<dtype>(bits);
  if constexpr (dtype == DType::kFloat64) {
    return __longlong_as_double(static_cast<long long>(magnitude));
  } else if constexpr (dtype == DType::kFloat32) {
    return __uint_as_float(magnitude);
  } else {
    constexpr HalfFormat kFormat = kHalfFormat<dtype>;
    constexpr unsigned kSmallestNormal = 1u << kFormat.fraction_bits;
    // The exponents' biases: a double's is 1023, and the smallest normal number has 1.
    constexpr unsigned kBias = static_cast<unsigned>(1023 + kFormat.smallest_exponent - 1) << 20;
    if (magnitude - kSmallestNormal < kFormat.infinity - kSmallestNormal) {
      return __hiloint2double(static_cast<int>((magnitude << (20 - kFormat.fraction_bits)) + kBias),
                              0);
    }
    if (magnitude < kSmallestNormal) {
      // The value of its last bit, a power of two.
      constexpr int kLastBit = kFormat.smallest_exponent - kFormat.fraction_bits;
      return __dmul_rn(static_cast<double>(magnitude),
                       __hiloint2double((1023 + kLastBit) << 20, 0));
    }
    return __hiloint2double(magnitude == kFormat.infinity ? 0x7ff00000 : 0x7ff80000, 0);
  }
}

// To nearest even.
__device__ __forceinline__ unsigned short FloatToBFloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<unsigned short>(bits >> 16 | 0x40);
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// in_float: the coefficient rounded to float.
template <DType dtype>
__device__ __forceinline__ BitsOf<dtype> Scaled(BitsOf<dtype> bits, double coefficient,
                                                float in_float) {
  if constexpr (dtype == DType::kFloat64) {
    const double x = __longlong_as_double(static_cast<long long>(bits));
    return static_cast<BitsOf<dtype>>(__double_as_longlong(__dmul_rn(x, coefficient)));
  } else if constexpr (dtype == DType::kFloat32) {
    return __float_as_uint(__fmul_rn(__uint_as_float(bits), in_float));
  } else if constexpr (dtype == DType::kFloat16) {
    const float x = __half2float(__ushort_as_half(bits));
    return __half_as_ushort(__float2half_rn(__fmul_rn(x, in_float)));
  } else {
    const float x = __uint_as_float(static_cast<unsigned>(bits) << 16);
    return FloatToBFloat16(__fmul_rn(x, in_float));
  }
}

// In double, rounded once: for coefficients that a float can't hold, or not to 24 bits.
template <DType dtype>
__device__ __noinline__ BitsOf<dtype> ScaledInDouble(BitsOf<dtype> bits, double coefficient) {
  if constexpr (dtype == DType::kFloat64) {
    return static_cast<BitsOf<dtype>>(__double_as_longlong(
        __dmul_rn(__longlong_as_double(static_cast<long long>(bits)), coefficient)));
  } else if constexpr (dtype == DType::kFloat32) {
    return __float_as_uint(
        __double2float_rn(__dmul_rn(static_cast<double>(__uint_as_float(bits)), coefficient)));
  } else {
    double x = Magnitude<dtype>(bits);
    if ((bits & 0x8000) != 0) x = -x;
    const HalfFormat format = kHalfFormat<dtype>;
    return DoubleToHalf(format, __dmul_rn(x, coefficient));
  }
}

}  // namespace gradclip::cuda

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_ELEMENTS_CUH_
