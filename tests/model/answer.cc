#include "tests/model/answer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/model/model.h"

namespace gradclip {
namespace {

using absl::StatusCode;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double NormType(const v1::NormOptions& norm) {
  return norm.has_norm_type() ? norm.norm_type() : 2;
}

double PreScale(const v1::NormOptions& norm) {
  return norm.has_pre_scale() ? norm.pre_scale() : 1;
}

double Epsilon(const v1::ClipGradNormStart& start) {
  return start.has_epsilon() ? start.epsilon() : 1e-6;
}

bool IsFiniteAndAbove(double value, double bound) {
  return value > bound && value < kInfinity;
}

bool IsValidGroup(const v1::Group& group) {
  const bool timeout_ok =
      !group.has_timeout() || static_cast<long double>(group.timeout().seconds()) * 1e9L +
                                      static_cast<long double>(group.timeout().nanos()) >
                                  0;
  return !group.job().empty() && group.job().size() <= 256 && group.rank() < group.world_size() &&
         group.job_secret().size() <= 1024 && timeout_ok;
}

// What both RPCs ask of a start message.
template <typename Start>
StatusCode CommonVerdict(const Start& start) {
  const bool valid = (!start.has_group() || IsValidGroup(start.group())) &&
                     NormType(start.norm()) > 0 && IsFiniteAndAbove(PreScale(start.norm()), 0) &&
                     DeclaredBytes(start.tensors()).has_value();
  return valid ? StatusCode::kOk : StatusCode::kInvalidArgument;
}

bool IsValid(const v1::ClipGradNormStart& start) {
  if (!start.has_max_norm() || !(start.max_norm() >= 0)) return false;
  if (Epsilon(start) != 0 && !IsFiniteAndAbove(Epsilon(start), 0)) return false;
  if (start.nonfinite() < 0 || start.nonfinite() > 3) return false;
  if (start.reply() < 0 || start.reply() > 2) return false;
  return !start.has_total_norm() || !(start.total_norm() < 0 || start.norm().per_tensor() ||
                                      start.has_group() || start.reply() == v1::REPLY_COEFFICIENT);
}

// The p-norm in long double, whose range holds the squares of all doubles.
long double PlainNorm(const std::vector<double>& values, double p) {
  long double largest = 0;
  for (const double value : values) {
    if (std::isnan(value)) return std::numeric_limits<long double>::quiet_NaN();
    largest = std::max<long double>(largest, std::fabs(value));
  }
  if (std::isinf(p) || std::isinf(largest) || largest == 0) return largest;
  long double sum = 0;
  for (const double value : values) {
    sum += std::pow(std::fabs(static_cast<long double>(value)) / largest, p);
  }
  return largest * std::pow(sum, 1 / static_cast<long double>(p));
}

NormRange RangeOf(const std::vector<double>& values, const v1::NormOptions& options) {
  const double p = NormType(options);
  const bool exact_p = p == 1 || p == 2 || std::isinf(p);
  const long double tolerance = exact_p ? 1e-12L : 1e-12L / std::min<long double>(1, p);
  const long double norm = PlainNorm(values, p) * PreScale(options);
  if (std::isinf(norm)) return {kInfinity, kInfinity};
  const auto low = static_cast<double>(norm * std::max(1 - tolerance, 0.0L));
  const auto high = static_cast<double>(norm * (1 + tolerance));
  return {std::nextafter(low, 0.0), norm == 0 ? 0 : std::nextafter(high, kInfinity)};
}

// min(1, max_norm / (total_norm + epsilon)).
double Fraction(const v1::ClipGradNormStart& start, double total_norm) {
  const double max_norm = start.max_norm();
  if (max_norm == kInfinity) return 1;
  const double divisor = total_norm + Epsilon(start);
  if (std::isnan(divisor)) return divisor;
  if (max_norm >= divisor) return 1;  // 0 / 0 too
  // Where the sum of two finite numbers is beyond double it is still none in long double.
  if (std::isfinite(total_norm) && std::isinf(divisor)) {
    return static_cast<double>(max_norm / (static_cast<long double>(total_norm) + Epsilon(start)));
  }
  return max_norm / divisor;
}

// Whether multiplying by the coefficient changes any number of the type. Numbers between 1 and 2
// stand for all: others have the same fractions, and subnormal ones move less against their steps.
// F16 and BF16 count as changed from a quarter of a step above 1 on, though the first that changes
// may come a little later.
bool Changes(DType dtype, double coefficient) {
  if (dtype == DType::kFloat64) return coefficient != 1;
  if (dtype == DType::kFloat32) return static_cast<float>(coefficient) != 1;
  const int fractions = dtype == DType::kFloat16 ? 1024 : 128;
  for (int i = 0; i < fractions; ++i) {
    const double number = 1 + static_cast<double>(i) / fractions;
    const std::string element = EncodeNarrow(dtype, number);
    if (ScaleElement(dtype, element, coefficient) != element) return true;
  }
  return coefficient - 1 > 0.25 / fractions;
}

bool GradientFollows(const v1::ClipGradNormStart& start, double coefficient) {
  if (start.reply() != v1::REPLY_GRADIENT_IF_CHANGED) return start.reply() == v1::REPLY_GRADIENT;
  return std::any_of(start.tensors().begin(), start.tensors().end(),
                     [&](const v1::TensorSpec& tensor) {
                       const auto& shape = tensor.shape();
                       return std::find(shape.begin(), shape.end(), 0) == shape.end() &&
                              Changes(static_cast<DType>(tensor.dtype()), coefficient);
                     });
}

}  // namespace

std::optional<uint64_t> DeclaredBytes(const Tensors& tensors) {
  constexpr unsigned __int128 kMost = std::numeric_limits<int64_t>::max();
  unsigned __int128 total = 0;
  for (const v1::TensorSpec& tensor : tensors) {
    if (tensor.dtype() < v1::DTYPE_FLOAT32 || tensor.dtype() > v1::DTYPE_FLOAT64) return {};
    const auto& shape = tensor.shape();
    if (std::any_of(shape.begin(), shape.end(), [](int64_t extent) { return extent < 0; })) {
      return {};
    }
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) continue;
    unsigned __int128 bytes = ElementSize(static_cast<DType>(tensor.dtype()));
    for (int64_t extent : shape) {
      bytes *= static_cast<uint64_t>(extent);
      if (bytes > kMost) return {};
    }
    total += bytes;
    if (total > kMost) return {};
  }
  return static_cast<uint64_t>(total);
}

StatusCode ModelVerdict(const v1::ComputeNormStart& start, uint64_t gradient_bytes) {
  if (const StatusCode common = CommonVerdict(start); common != StatusCode::kOk) return common;
  return *DeclaredBytes(start.tensors()) == gradient_bytes ? StatusCode::kOk
                                                           : StatusCode::kInvalidArgument;
}

StatusCode ModelVerdict(const v1::ClipGradNormStart& start, uint64_t gradient_bytes,
                        uint64_t max_call_bytes) {
  if (const StatusCode common = CommonVerdict(start); common != StatusCode::kOk) return common;
  if (!IsValid(start)) return StatusCode::kInvalidArgument;
  const uint64_t declared = *DeclaredBytes(start.tensors());
  if (start.has_total_norm()) {
    // The answer is known before any data comes.
    if (start.nonfinite() == v1::NONFINITE_ERROR && !std::isfinite(start.total_norm())) {
      return StatusCode::kFailedPrecondition;
    }
  } else if (start.reply() != v1::REPLY_COEFFICIENT && declared > max_call_bytes) {
    return StatusCode::kResourceExhausted;
  }
  return declared == gradient_bytes ? StatusCode::kOk : StatusCode::kInvalidArgument;
}

bool NormRange::Holds(double norm) const {
  if (std::isnan(low)) return std::isnan(norm);
  return low <= norm && norm <= high;
}

ModelNorm ModelMeasure(const v1::ClipGradNormStart& start, std::string_view gradient) {
  ModelNorm norm;
  std::vector<double> counted;
  for (int i = 0; i < start.tensors_size(); ++i) {
    const v1::TensorSpec& spec = start.tensors(i);
    const std::vector<double> values = TakeTensor(spec, gradient);
    ModelTensor tensor;
    tensor.norm = RangeOf(values, start.norm());
    for (size_t at = 0; at < values.size(); ++at) {
      if (values[at] == 0) ++tensor.zero_elements;
      if (std::isfinite(values[at])) continue;
      ++tensor.nonfinite_elements;
      if (spec.replica()) continue;
      if (norm.nonfinite_elements++ == 0) {
        norm.first_nonfinite = (spec.name().empty() ? "#" + std::to_string(i) : spec.name()) + "[" +
                               std::to_string(at) + "]";
      }
    }
    if (!spec.replica()) counted.insert(counted.end(), values.begin(), values.end());
    norm.tensors.push_back(tensor);
  }
  norm.total = RangeOf(counted, start.norm());
  return norm;
}

v1::ClipResult ModelDecide(const v1::ClipGradNormStart& start, double total_norm) {
  v1::ClipResult result;
  result.set_clipped(total_norm + Epsilon(start) > start.max_norm());
  const bool skips =
      start.nonfinite() == v1::NONFINITE_SKIP || start.nonfinite() == v1::NONFINITE_ZERO;
  result.set_skipped(skips && !std::isfinite(total_norm));
  if (result.skipped()) {
    result.set_coefficient(start.nonfinite() == v1::NONFINITE_SKIP ? 1 : 0);
  } else {
    result.set_coefficient(PreScale(start.norm()) * Fraction(start, total_norm));
  }
  result.set_gradient_follows(GradientFollows(start, result.coefficient()));
  return result;
}

}  // namespace gradclip
