// Elements one at a time: to double exactly, and from double rounded once. For what is rare or slow
// anyway; sums and scaling of whole runs have kernels. Pure functions, to be called in the default
// floating-point environment.
#ifndef GRADCLIP_SERVER_BACKEND_ELEMENT_H_
#define GRADCLIP_SERVER_BACKEND_ELEMENT_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "gradclip/dtype.h"
#include "server/backend/host_device.h"

namespace gradclip {

// A 16-bit format: IEEE 754's layout with `fraction_bits` of fraction and the rest exponent.
struct HalfFormat {
  int fraction_bits;
  int smallest_exponent;  // of normal numbers
  uint16_t infinity;
};
inline constexpr HalfFormat kFloat16Format = {10, -14, 0x7c00};
inline constexpr HalfFormat kBFloat16Format = {7, -126, 0x7f80};

GRADCLIP_HOST_DEVICE inline double HalfToDouble(const HalfFormat& format, uint16_t bits) {
  const int magnitude = bits & 0x7fff;
  const int exponent = magnitude >> format.fraction_bits;
  const int fraction = magnitude & ((1 << format.fraction_bits) - 1);
  double value;
  if (magnitude >= format.infinity) {
    value = magnitude == format.infinity ? INFINITY : NAN;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, format.smallest_exponent - format.fraction_bits);
  } else {
    value = std::ldexp(fraction + (1 << format.fraction_bits),
                       format.smallest_exponent + exponent - 1 - format.fraction_bits);
  }
  return bits & 0x8000 ? -value : value;
}

// To nearest even.
GRADCLIP_HOST_DEVICE inline uint16_t DoubleToHalf(const HalfFormat& format, double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | format.infinity | (1 << (format.fraction_bits - 1));
  const double magnitude = std::fabs(value);
  if (magnitude >= 0x1p128) return sign | format.infinity;
  int exponent = magnitude < 0x1p-126 ? format.smallest_exponent : std::ilogb(magnitude);
  if (exponent < format.smallest_exponent) exponent = format.smallest_exponent;
  // In units of the last place; where it rounds up to the next power of two, or out of the
  // subnormal numbers, the sum below carries into the exponent.
  const auto units =
      static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.fraction_bits - exponent)));
  const int bits = ((exponent - format.smallest_exponent) << format.fraction_bits) + units;
  return sign | static_cast<uint16_t>(bits < format.infinity ? bits : format.infinity);
}

template <DType dtype>
double LoadElement(const std::byte* element) {
  if constexpr (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, element, sizeof value);
    return value;
  } else if constexpr (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, element, sizeof value);
    return value;
  } else {
    uint16_t bits;
    std::memcpy(&bits, element, sizeof bits);
    if constexpr (dtype == DType::kBFloat16) return std::bit_cast<float>(uint32_t{bits} << 16);
    return HalfToDouble(kFloat16Format, bits);
  }
}

template <DType dtype>
void StoreElement(std::byte* element, double value) {
  if constexpr (dtype == DType::kFloat64) {
    std::memcpy(element, &value, sizeof value);
  } else if constexpr (dtype == DType::kFloat32) {
    const auto rounded = static_cast<float>(value);
    std::memcpy(element, &rounded, sizeof rounded);
  } else {
    constexpr HalfFormat kFormat = dtype == DType::kFloat16 ? kFloat16Format : kBFloat16Format;
    const uint16_t bits = DoubleToHalf(kFormat, value);
    std::memcpy(element, &bits, sizeof bits);
  }
}

// Calls function.template operator()<dtype>().
template <typename Function>
auto WithDType(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function.template operator()<DType::kFloat32>();
    case DType::kFloat16:
      return function.template operator()<DType::kFloat16>();
    case DType::kBFloat16:
      return function.template operator()<DType::kBFloat16>();
    case DType::kFloat64:
      break;
  }
  return function.template operator()<DType::kFloat64>();
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_ELEMENT_H_
