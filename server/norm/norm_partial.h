// The norm of part of a gradient, before the root: the one value that blocks, threads, ranks and
// stores merge. A value type; not thread-safe.
#ifndef GRADCLIP_SERVER_NORM_NORM_PARTIAL_H_
#define GRADCLIP_SERVER_NORM_NORM_PARTIAL_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace gradclip {

// (implementation: exact fixed-point sum for p = 1 and 2, maximum for infinity, (largest, scaled
// sum) for other p; see the class comment)
class NormPartial {
 public:
  // REQUIRES: norm_type > 0 (infinity included).
  explicit NormPartial(double norm_type);

  double norm_type() const;

  // Adds a block's sum of |x|^p, which is sum * 2^exponent, sum >= 0, infinite or NaN. p = 1 and 2
  // only.
  void AddSum(double sum, int exponent);
  // Takes the larger. NaN stays. p = infinity only.
  void AddLargest(double magnitude);
  // Adds a block's sum of |x|^p given as largest^p * scaled_sum. Other p only.
  void AddScaled(double largest, double scaled_sum);

  // Adds all that `other` holds. REQUIRES: the same norm_type. Exact, associative and commutative
  // for p = 1, 2 and infinity; for other p merge in block and rank order.
  void Merge(const NormPartial& other);

  // The p-norm of all that was added, rounded once before the root.
  double Norm() const;

  // A versioned byte form, the same bytes for the same value, and back. Parse: INVALID_ARGUMENT for
  // what Serialize() can't have written.
  std::string Serialize() const;
  static absl::StatusOr<NormPartial> Parse(std::string_view bytes);
};

}  // namespace gradclip

#endif
