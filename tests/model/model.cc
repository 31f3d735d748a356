#include "tests/model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace gradclip {
namespace {

template <typename Number>
Number Load(std::string_view bytes) {
  Number number;
  std::memcpy(&number, bytes.data(), sizeof(number));
  return number;
}

template <typename Number>
std::string Store(Number number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof(number));
}

double DecodeHalf(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<double>::infinity()
                              : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, -24);
  } else {
    magnitude = std::ldexp(1024 + fraction, exponent - 25);
  }
  return bits >> 15 ? -magnitude : magnitude;
}

// Calls visit(tensor, bytes of the element) in stream order.
void ForEachElement(const v1::ClipGradNormStart& start, std::string_view gradient,
                    const std::function<void(const v1::TensorSpec&, std::string_view)>& visit) {
  for (const v1::TensorSpec& tensor : start.tensors()) {
    uint64_t elements = 1;
    for (int64_t extent : tensor.shape()) elements *= extent;
    const size_t size = ElementSize(static_cast<DType>(tensor.dtype()));
    for (; elements > 0; --elements) {
      visit(tensor, gradient.substr(0, size));
      gradient.remove_prefix(size);
    }
  }
}

std::string ScaleElement(DType dtype, std::string_view element, double coefficient) {
  const double value = Decode(dtype, element);
  const double magnitude = std::fabs(coefficient);
  const bool in_float_range = magnitude >= std::numeric_limits<float>::min() &&
                              magnitude <= std::numeric_limits<float>::max();
  if (dtype == DType::kFloat64) return Store(value * coefficient);
  if (std::isnan(coefficient)) return Store(0);
  if (coefficient != 0 && !in_float_range) {
    return EncodeNarrow(dtype, value * coefficient);
  }
  return EncodeNarrow(dtype, static_cast<float>(value) * static_cast<float>(coefficient));
}

}  // namespace

double Decode(DType dtype, std::string_view bytes) {
  switch (dtype) {
    case DType::kFloat32:
      return Load<float>(bytes);
    case DType::kFloat64:
      return Load<double>(bytes);
    case DType::kBFloat16:
      return Load<float>(std::string(2, '\0') + std::string(bytes.substr(0, 2)));
    case DType::kFloat16:
      return DecodeHalf(Load<uint16_t>(bytes));
  }
  return 0;
}

std::string EncodeNarrow(DType dtype, long double value) {
  if (dtype == DType::kFloat32) return Store(static_cast<float>(value));
  const uint16_t infinity = dtype == DType::kFloat16 ? 0x7c00 : 0x7f80;
  const auto store = [&](unsigned bits) {
    return Store(static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0)));
  };
  if (std::isnan(value)) return store(infinity | 1);
  const long double magnitude = std::fabs(value);
  const auto decode = [&](unsigned bits) -> long double {
    // One past the largest finite number counts as the number that would come next.
    if (bits == infinity) return std::ldexp(1.0L, dtype == DType::kFloat16 ? 16 : 128);
    return Decode(dtype, Store(static_cast<uint16_t>(bits)));
  };
  // Magnitudes grow with their patterns: find the last that is not above, then the nearer
  // neighbour.
  unsigned low = 0;
  unsigned high = infinity;
  while (low < high) {
    const unsigned middle = (low + high + 1) / 2;
    (decode(middle) <= magnitude ? low : high) = decode(middle) <= magnitude ? middle : middle - 1;
  }
  if (low == infinity) return store(infinity);
  const long double below = magnitude - decode(low);
  const long double above = decode(low + 1) - magnitude;
  if (above < below || (above == below && low % 2 == 1)) ++low;
  return store(low);
}

long double ModelNorm(const v1::ClipGradNormStart& start, std::string_view gradient) {
  const long double p = start.norm().has_norm_type() ? start.norm().norm_type() : 2.0;
  long double largest = 0;
  bool nan = false;
  std::vector<long double> magnitudes;
  ForEachElement(start, gradient, [&](const v1::TensorSpec& tensor, std::string_view element) {
    if (tensor.replica()) return;
    const long double magnitude = std::fabs(Decode(static_cast<DType>(tensor.dtype()), element));
    nan = nan || std::isnan(magnitude);
    largest = std::max(largest, magnitude);
    magnitudes.push_back(magnitude);
  });
  if (nan) return std::numeric_limits<long double>::quiet_NaN();
  if (std::isinf(p) || std::isinf(largest) || largest == 0) return largest;
  long double sum = 0;
  for (long double magnitude : magnitudes) sum += std::pow(magnitude / largest, p);
  return largest * std::pow(sum, 1 / p);
}

std::string ModelScale(const v1::ClipGradNormStart& start, const v1::ClipResult& result,
                       std::string_view gradient) {
  if (result.skipped() && result.coefficient() == 0) return std::string(gradient.size(), '\0');
  if (result.skipped()) return std::string(gradient);
  std::string scaled;
  ForEachElement(start, gradient, [&](const v1::TensorSpec& tensor, std::string_view element) {
    scaled += ScaleElement(static_cast<DType>(tensor.dtype()), element, result.coefficient());
  });
  return scaled;
}

uint64_t DeclaredBytes(const v1::ClipGradNormStart& start) {
  uint64_t bytes = 0;
  for (const v1::TensorSpec& tensor : start.tensors()) {
    uint64_t elements = 1;
    for (int64_t extent : tensor.shape()) elements *= extent;
    bytes += elements * ElementSize(static_cast<DType>(tensor.dtype()));
  }
  return bytes;
}

}  // namespace gradclip
