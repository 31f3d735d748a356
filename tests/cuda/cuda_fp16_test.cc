#include "cuda_fp16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace gradclip {
namespace {

// By arithmetic rather than bits.
float Decode(unsigned bits) {
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  const int exponent = static_cast<int>(bits >> 10 & 0x1f);
  const int fraction = static_cast<int>(bits & 0x3ff);
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<float>::quiet_NaN()
                         : sign * std::numeric_limits<float>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

// The magnitude's nearest half, by the rounding that the host has; ties to even.
double Nearest(float value) {
  if (value == 0) return 0;
  const int exponent = std::max(std::ilogb(value), -14);
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(double{value}, 10 - exponent)), exponent - 10);
  return rounded > 65504 ? std::numeric_limits<double>::infinity() : rounded;
}

TEST(CudaHalf, EveryPatternHasItsValueAndComesBack) {
  for (unsigned bits = 0; bits < 1 << 16; ++bits) {
    const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    const float expected = Decode(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(__half_as_ushort(__float2half_rn(value)), 0x7fff);
      continue;
    }
    ASSERT_EQ(value, expected) << bits;
    ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
    ASSERT_EQ(__half_as_ushort(__float2half_rn(value)), bits);
  }
}

void ExpectRounded(uint32_t bits) {
  const auto value = std::bit_cast<float>(bits);
  const __half half = __float2half_rn(value);
  const float back = __half2float(half);
  if (std::isnan(value)) {
    ASSERT_EQ(__half_as_ushort(half), 0x7fff) << bits;
    return;
  }
  ASSERT_EQ(std::signbit(back), std::signbit(value)) << bits;
  ASSERT_EQ(std::fabs(double{back}),
            std::isinf(value) ? double{std::fabs(value)} : Nearest(std::fabs(value)))
      << bits;
}

TEST(CudaHalf, FloatsRoundToTheNearestWithTiesToEven) {
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4093)
    ExpectRounded(static_cast<uint32_t>(bits));
}

TEST(CudaHalf, FloatsAroundEveryHalfAndEveryTieRoundRight) {
  for (unsigned half = 0; half < 0x7c00; ++half) {
    const auto low = std::bit_cast<uint32_t>(Decode(half));
    const auto tie = std::bit_cast<uint32_t>(static_cast<float>(
        (double{Decode(half)} + (half == 0x7bff ? 65536.0 : Decode(half + 1))) / 2));
    for (const uint32_t middle : {low, tie}) {
      for (uint32_t bits = middle - (middle > 0); bits <= middle + 1; ++bits) {
        ExpectRounded(bits);
        ExpectRounded(bits | 0x80000000u);
      }
    }
  }
}

}  // namespace
}  // namespace gradclip
