// The norm of part of a gradient, before the root: the one value that blocks, threads, ranks and
// stores merge. A value type; not thread-safe.
#ifndef GRADCLIP_SERVER_NORM_NORM_PARTIAL_H_
#define GRADCLIP_SERVER_NORM_NORM_PARTIAL_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/backend/device.h"
#include "server/norm/fixed_point_sum.h"

namespace gradclip {

// p = 1 and 2: the exact sum of the block sums, rounded once before the root. (A running double sum
// misses 1e-12 from 16 GiB on and depends on how ranks split.) p = infinity: the largest magnitude.
// Other p: (base, scaled) for base^p * scaled, where the base is a block's largest magnitude and
// `scaled` is summed with compensation.
//
// The caller's floating-point environment changes nothing.
class NormPartial {
 public:
  // REQUIRES: norm_type > 0 (infinity included).
  explicit NormPartial(double norm_type);

  double norm_type() const { return norm_type_; }

  // As constructed.
  void Clear();

  // Adds a block's sum of |x|^p, which is sum * 2^exponent, sum >= 0, infinite or NaN. p = 1 and 2
  // only.
  void AddSum(double sum, int exponent);
  // Takes the larger. NaN stays. p = infinity only.
  void AddLargest(double magnitude);
  // Adds a block's sum of |x|^p given as largest^p * scaled_sum. Other p only. `largest` is 0 where
  // the sum is, infinite or NaN where the sum is; otherwise REQUIRES: 1 <= scaled_sum <= 2^64.
  void AddScaled(double largest, double scaled_sum);

  // Adds what a device found. p = 1, 2 and infinity only, each with its own NormKind.
  void AddTally(const DeviceTally& tally);

  // Adds all that `other` holds. REQUIRES: the same norm_type. Exact, associative and commutative
  // for p = 1, 2 and infinity; for other p merge in block and rank order.
  void Merge(const NormPartial& other);

  // The p-norm of all that was added, times `factor`, rounded once before the root. Infinity where
  // the product is beyond the range of double, whatever the norm alone is. REQUIRES: factor is
  // finite and > 0.
  double Norm(double factor = 1) const;

  // A versioned byte form, the same bytes for the same value, and back. Parse: INVALID_ARGUMENT for
  // what Serialize() can't have written. The form, little-endian:
  //   u8 version (1), u8 state (0 finite, 1 infinite, 2 NaN), f64 norm_type, and where finite
  //   p = 1, 2:  u8 place of the lowest digit, u8 count, u32 digits[count] of FixedPointSum;
  //   neither
  //              the first nor the last digit is 0
  //   infinity:  f64 largest
  //   other p:   f64 base, f64 scaled, f64 correction; all 0 where nothing but zeros was added
  std::string Serialize() const;
  static absl::StatusOr<NormPartial> Parse(std::string_view bytes);

 private:
  enum class Kind : uint8_t { kSum, kLargest, kScaled };
  using State = FixedPointSum::State;

  State state() const;
  double NormInDefaultEnvironment(double factor) const;
  void AddScaledInDefaultEnvironment(double largest, double scaled, double correction);

  double norm_type_;
  Kind kind_;
  // kLargest: the largest magnitude. kScaled: the base; infinity and NaN decide alone.
  double largest_ = 0;
  double scaled_ = 0;      // kScaled: 0, or >= 1
  double correction_ = 0;  // to be added to scaled_, less than half its last place
  FixedPointSum sum_;      // kSum
};

}  // namespace gradclip

#endif
