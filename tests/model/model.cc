#include "tests/model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

std::string ScaleElement(DType dtype, std::string_view element, double coefficient) {
  const double value = Decode(dtype, element);
  if (dtype == DType::kFloat64) return Store(value * coefficient);
  const double magnitude = std::fabs(coefficient);
  const bool in_float_range = magnitude >= std::numeric_limits<float>::min() &&
                              magnitude <= std::numeric_limits<float>::max();
  if (in_float_range || coefficient == 0) {
    return EncodeNarrow(dtype, static_cast<float>(value) * static_cast<float>(coefficient));
  }
  return EncodeNarrow(dtype, value * coefficient);
}

std::vector<double> TakeTensor(const v1::TensorSpec& tensor, std::string_view& gradient) {
  uint64_t elements = 1;
  for (int64_t extent : tensor.shape()) elements *= extent;
  const auto dtype = static_cast<DType>(tensor.dtype());
  std::vector<double> values;
  for (; elements > 0; --elements) {
    values.push_back(Decode(dtype, gradient));
    gradient.remove_prefix(ElementSize(dtype));
  }
  return values;
}

std::string ModelScale(const v1::ClipGradNormStart& start, const v1::ClipResult& result,
                       std::string_view gradient) {
  if (result.skipped() && result.coefficient() == 0) return std::string(gradient.size(), '\0');
  if (result.skipped()) return std::string(gradient);
  std::string scaled;
  for (const v1::TensorSpec& tensor : start.tensors()) {
    const auto dtype = static_cast<DType>(tensor.dtype());
    std::string_view elements = gradient;
    TakeTensor(tensor, gradient);
    elements.remove_suffix(gradient.size());
    for (; !elements.empty(); elements.remove_prefix(ElementSize(dtype))) {
      scaled += ScaleElement(dtype, elements.substr(0, ElementSize(dtype)), result.coefficient());
    }
  }
  return scaled;
}

bool SameElements(const v1::ClipGradNormStart& start, std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (const v1::TensorSpec& tensor : start.tensors()) {
    const std::string_view a_bytes = a;
    const std::string_view b_bytes = b;
    const std::vector<double> a_values = TakeTensor(tensor, a);
    const std::vector<double> b_values = TakeTensor(tensor, b);
    const size_t size = ElementSize(static_cast<DType>(tensor.dtype()));
    for (size_t i = 0; i < a_values.size(); ++i) {
      if (std::isnan(a_values[i]) && std::isnan(b_values[i])) continue;
      if (a_bytes.substr(i * size, size) != b_bytes.substr(i * size, size)) return false;
    }
  }
  return true;
}

}  // namespace gradclip
