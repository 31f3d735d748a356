#include "tests/server/backend/plain.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <random>

namespace gradclip {
namespace {

double HalfValue(DType dtype, uint16_t bits) {
  const int fraction_bits = dtype == DType::kFloat16 ? 10 : 7;
  const int exponent_bits = 15 - fraction_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

// Magnitudes in ascending order; instead of infinity the number that would come next.
std::vector<double> HalfMagnitudes(DType dtype) {
  const uint16_t infinity = dtype == DType::kFloat16 ? 0x7c00 : 0x7f80;
  std::vector<double> magnitudes;
  for (uint16_t bits = 0; bits < infinity; ++bits) magnitudes.push_back(HalfValue(dtype, bits));
  magnitudes.push_back(2 * magnitudes[infinity - 1] - magnitudes[infinity - 2]);
  return magnitudes;
}

template <typename Float>
void ScaleAs(std::byte* element, Float coefficient) {
  Float value;
  std::memcpy(&value, element, sizeof value);
  value = value * coefficient;
  std::memcpy(element, &value, sizeof value);
}

}  // namespace

Bytes Elements(DType dtype, std::span<const double> values) {
  Bytes bytes(values.size() * ElementSize(dtype));
  std::byte* at = bytes.data();
  for (const double value : values) {
    if (dtype == DType::kFloat64) {
      std::memcpy(at, &value, 8);
    } else if (dtype == DType::kFloat32) {
      const auto narrow = static_cast<float>(value);
      std::memcpy(at, &narrow, 4);
    } else {
      const uint16_t narrow = NearestHalf(dtype, value);
      std::memcpy(at, &narrow, 2);
    }
    at += ElementSize(dtype);
  }
  return bytes;
}

Bytes RandomElements(DType dtype, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const size_t size = ElementSize(dtype);
  const int fraction_bits = dtype == DType::kFloat64   ? 52
                            : dtype == DType::kFloat32 ? 23
                            : dtype == DType::kFloat16 ? 10
                                                       : 7;
  const int bits = static_cast<int>(8 * size);
  const uint64_t exponents = uint64_t{1} << (bits - 1 - fraction_bits);
  Bytes bytes(count * size);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t sort = random() % 16;
    uint64_t exponent = exponents / 2 - 6 + random() % 8;
    if (sort == 0) exponent = random() % (exponents - 1);  // not that of infinity
    if (sort == 1) exponent = 0;
    uint64_t element = random() >> (64 - fraction_bits) | exponent << fraction_bits;
    if (sort == 2) element = 0;
    element |= random() % 2 << (bits - 1);
    std::memcpy(bytes.data() + i * size, &element, size);
  }
  return bytes;
}

Unaligned::Unaligned(std::span<const std::byte> bytes) : bytes_(bytes.size() + 1) {
  std::copy(bytes.begin(), bytes.end(), bytes_.begin() + 1);
}

double PlainValue(DType dtype, const std::byte* element) {
  if (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, element, 8);
    return value;
  }
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, element, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, element, 2);
  return HalfValue(dtype, bits);
}

uint16_t NearestHalf(DType dtype, double value) {
  static const std::vector<double> float16 = HalfMagnitudes(DType::kFloat16);
  static const std::vector<double> bfloat16 = HalfMagnitudes(DType::kBFloat16);
  const std::vector<double>& magnitudes = dtype == DType::kFloat16 ? float16 : bfloat16;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const double magnitude = std::fabs(value);
  const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), magnitude);
  const size_t upper = std::min<size_t>(above - magnitudes.begin(), magnitudes.size() - 1);
  if (upper == 0 || magnitudes[upper] <= magnitude) return sign | upper;
  // Exact: double holds the differences of neighbours of a narrow format and what lies between.
  const long double down = static_cast<long double>(magnitude) - magnitudes[upper - 1];
  const long double up = static_cast<long double>(magnitudes[upper]) - magnitude;
  const bool take_upper = up < down || (up == down && upper % 2 == 0);
  return sign | static_cast<uint16_t>(take_upper ? upper : upper - 1);
}

Lanes PlainLanes(DType dtype, LaneTerm term, const std::byte* elements, size_t count,
                 size_t first_lane, Lanes lanes) {
  for (size_t i = 0; i < count; ++i) {
    const double value = PlainValue(dtype, elements + i * ElementSize(dtype));
    lanes[(first_lane + i) % kLanes] +=
        term == LaneTerm::kSquare ? value * value : std::fabs(value);
  }
  return lanes;
}

Bytes PlainScale(DType dtype, Bytes elements, double coefficient) {
  const double magnitude = std::fabs(coefficient);
  const bool in_double = magnitude != 0 && (magnitude < 0x1p-126 || magnitude > FLT_MAX);
  const size_t size = ElementSize(dtype);
  for (size_t at = 0; at < elements.size(); at += size) {
    std::byte* element = elements.data() + at;
    if (dtype == DType::kFloat64) {
      ScaleAs<double>(element, coefficient);
    } else if (dtype == DType::kFloat32 && !in_double) {
      ScaleAs<float>(element, static_cast<float>(coefficient));
    } else {
      const double value = PlainValue(dtype, element);
      const double product = in_double
                                 ? value * coefficient
                                 : static_cast<float>(value) * static_cast<float>(coefficient);
      if (dtype == DType::kFloat32) {
        const auto rounded = static_cast<float>(product);
        std::memcpy(element, &rounded, 4);
      } else {
        const uint16_t rounded = NearestHalf(dtype, product);
        std::memcpy(element, &rounded, 2);
      }
    }
  }
  return elements;
}

bool SameBits(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

std::string Difference(DType dtype, const std::byte* a, const std::byte* b, size_t count) {
  const size_t size = ElementSize(dtype);
  for (size_t i = 0; i < count; ++i) {
    const double left = PlainValue(dtype, a + i * size);
    const double right = PlainValue(dtype, b + i * size);
    if (!SameBits(left, right)) {
      return "[" + std::to_string(i) + "]: " + std::to_string(left) + ", not " +
             std::to_string(right);
    }
  }
  return "";
}

std::vector<std::string> UsableBackends() {
  std::vector<std::string> names;
  for (const BackendChoice& choice : ListBackends()) {
    if (choice.usable) names.push_back(choice.name);
  }
  return names;
}

std::string TestName(const std::string& backend) {
  std::string name = backend;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

}  // namespace gradclip
