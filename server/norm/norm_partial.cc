#include "server/norm/norm_partial.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "server/backend/floating_point_environment.h"
#include "server/norm/power.h"

namespace gradclip {
namespace {

// By the bits, which order as magnitudes do, NaN above infinity; a comparison of doubles would take
// subnormals for 0 where the caller has set DAZ.
double LargerMagnitude(double a, double b) {
  const auto bits = [](double x) { return std::bit_cast<uint64_t>(x) & INT64_MAX; };
  return std::bit_cast<double>(std::max(bits(a), bits(b)));
}

FixedPointSum::State StateOf(double value) {
  const uint64_t bits = std::bit_cast<uint64_t>(value) & INT64_MAX;
  const uint64_t infinity = std::bit_cast<uint64_t>(static_cast<double>(INFINITY));
  if (bits < infinity) return FixedPointSum::State::kFinite;
  return bits == infinity ? FixedPointSum::State::kInfinite : FixedPointSum::State::kNan;
}

}  // namespace

NormPartial::NormPartial(double norm_type)
    : norm_type_(norm_type),
      kind_(norm_type == 1 || norm_type == 2 ? Kind::kSum
            : std::isinf(norm_type)          ? Kind::kLargest
                                             : Kind::kScaled) {}

void NormPartial::Clear() {
  largest_ = scaled_ = correction_ = 0;
  sum_.Clear();
}

void NormPartial::AddSum(double sum, int exponent) {
  sum_.Add(sum, exponent);
}

void NormPartial::AddLargest(double magnitude) {
  largest_ = LargerMagnitude(largest_, magnitude);
}

void NormPartial::AddScaled(double largest, double scaled_sum) {
  const FloatingPointEnvironment environment;
  AddScaledInDefaultEnvironment(largest, scaled_sum, 0);
}

void NormPartial::AddTally(const DeviceTally& tally) {
  if (kind_ == Kind::kLargest) return AddLargest(std::bit_cast<double>(tally.largest));
  if (tally.nonfinite_sums != 0) return sum_.Add(tally.nan_sums != 0 ? NAN : INFINITY, 0);
  sum_.AddDigits(tally.digits, tally.blocks);
}

void NormPartial::Merge(const NormPartial& other) {
  switch (kind_) {
    case Kind::kSum:
      sum_.Add(other.sum_);
      break;
    case Kind::kLargest:
      AddLargest(other.largest_);
      break;
    case Kind::kScaled: {
      const FloatingPointEnvironment environment;
      AddScaledInDefaultEnvironment(other.largest_, other.scaled_, other.correction_);
    }
  }
}

GRADCLIP_OUT_OF_LINE void NormPartial::AddScaledInDefaultEnvironment(double largest, double scaled,
                                                                     double correction) {
  if (largest == 0) return;
  if (!std::isfinite(largest) || !std::isfinite(largest_)) {
    largest_ = LargerMagnitude(largest_, largest);
    scaled_ = correction_ = 0;
    return;
  }
  if (scaled_ == 0) {
    largest_ = largest;
    scaled_ = scaled;
    correction_ = correction;
    return;
  }
  // A base that is passed a little is kept, and changes only where what it stands for has lost most
  // of its weight: rounding errors of changes don't pile up however slowly the magnitudes rise.
  constexpr double kMostFactor = 0x1p32;
  double factor = PowerOfQuotient(largest, largest_, norm_type_);
  if (factor > kMostFactor) {
    const double shrink = PowerOfQuotient(largest_, largest, norm_type_);
    scaled_ *= shrink;
    correction_ *= shrink;
    largest_ = largest;
    factor = 1;
  }
  // scaled_ + term as a rounded sum and its exact error (Knuth's TwoSum), then the same of the
  // sum and all corrections.
  const double term = scaled * factor;
  const double sum = scaled_ + term;
  const double part = sum - scaled_;
  const double error = (scaled_ - (sum - part)) + (term - part);
  const double corrections = correction_ + correction * factor + error;
  scaled_ = sum + corrections;
  correction_ = corrections - (scaled_ - sum);
}

double NormPartial::Norm(double factor) const {
  const FloatingPointEnvironment environment;
  return NormInDefaultEnvironment(factor);
}

GRADCLIP_OUT_OF_LINE double NormPartial::NormInDefaultEnvironment(double factor) const {
  if (kind_ == Kind::kLargest) return largest_ * factor;
  if (kind_ == Kind::kScaled) {
    if (scaled_ == 0) return largest_;  // 0, infinity or NaN
    // In long double, as scaled^(1 / p) is beyond double for small p while the product need not be.
    const long double scaled = static_cast<long double>(scaled_) + correction_;
    const long double base = static_cast<long double>(largest_) * factor;
    return static_cast<double>(base * std::pow(scaled, 1.0L / norm_type_));
  }
  FixedPointSum sum = sum_;
  sum.Settle();
  if (sum.state() == State::kNan) return NAN;
  if (sum.state() == State::kInfinite) return INFINITY;
  auto [mantissa, exponent] = sum.Round();
  // Of sum, root and factor any may be beyond double while the product is not: fractions and
  // exponents apart.
  int factor_exponent;
  const double fraction = std::frexp(factor, &factor_exponent);
  if (norm_type_ == 1) return std::ldexp(mantissa * fraction, exponent + factor_exponent);
  if (exponent % 2 != 0) {
    mantissa *= 2;
    --exponent;
  }
  return std::ldexp(std::sqrt(mantissa) * fraction, exponent / 2 + factor_exponent);
}

FixedPointSum::State NormPartial::state() const {
  return kind_ == Kind::kSum ? sum_.state() : StateOf(largest_);
}

}  // namespace gradclip
