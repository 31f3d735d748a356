// CUDA's half type with the conversions that are in use: exact, to nearest with ties to even, and
// with subnormals kept. NaNs become CUDA's 0x7fff.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FP16_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FP16_H_

#include <bit>
#include <cstdint>

struct __half_raw {
  unsigned short x;
};

class __half {
 public:
  __half() = default;
  constexpr __half(__half_raw raw) : bits_(raw.x) {}
  constexpr operator __half_raw() const { return {bits_}; }

 private:
  unsigned short bits_;
};
using half = __half;

constexpr __half __ushort_as_half(unsigned short bits) {
  return __half_raw{bits};
}
constexpr unsigned short __half_as_ushort(__half value) {
  return __half_raw(value).x;
}

constexpr float __half2float(__half value) {
  const uint32_t bits = __half_as_ushort(value);
  const uint32_t sign = (bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1f;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0x1f) {
    return std::bit_cast<float>(fraction != 0 ? 0x7fffffffu : sign | 0x7f800000u);
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

constexpr __half __float2half_rn(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<unsigned short>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return __ushort_as_half(0x7fff);
  // 65520 and more lie half a step beyond the greatest half.
  if (magnitude >= 0x477ff000) return __ushort_as_half(sign | 0x7c00);
  // Below 2^-25, and 2^-25 itself as a tie with the even zero.
  if (magnitude <= 0x33000000) return __ushort_as_half(sign);
  const uint32_t exponent = magnitude >> 23;
  const bool subnormal = exponent < 113;
  const uint32_t shift = subnormal ? 126 - exponent : 13;
  const uint32_t fraction =
      subnormal ? (magnitude & 0x7fffff) | 0x800000 : magnitude - (uint32_t{112} << 23);
  const uint32_t remainder = fraction & ((uint32_t{1} << shift) - 1);
  const uint32_t middle = uint32_t{1} << (shift - 1);
  uint32_t rounded = fraction >> shift;
  if (remainder > middle || (remainder == middle && rounded % 2 == 1)) ++rounded;
  return __ushort_as_half(static_cast<unsigned short>(sign | rounded));
}

constexpr __half __float2half(float value) {
  return __float2half_rn(value);
}

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_FP16_H_
