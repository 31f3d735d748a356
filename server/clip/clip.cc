#include "server/clip/clip.h"

#include <cmath>

namespace gradclip {
namespace {

// min(1, max_norm / (total_norm + epsilon)). std::min(1.0, NaN) would be 1.
double Fraction(const ClipRule& rule, double total_norm) {
  if (std::isinf(rule.max_norm)) return 1;
  const double divisor = total_norm + rule.epsilon;
  if (rule.max_norm == 0 && divisor == 0) return 1;
  double fraction = rule.max_norm / divisor;
  // The sum of two finite numbers that overflows is not infinite: halved it is in range.
  if (std::isinf(divisor) && std::isfinite(total_norm)) {
    fraction = rule.max_norm / 2 / (total_norm / 2 + rule.epsilon / 2);
  }
  return fraction > 1 ? 1 : fraction;
}

}  // namespace

ClipDecision Decide(const ClipRule& rule, double total_norm) {
  ClipDecision decision;
  // Where the left side overflows only a max_norm of infinity isn't below it.
  decision.clipped = total_norm + rule.epsilon > rule.max_norm;
  if (!std::isfinite(total_norm)) {
    if (rule.nonfinite == OnNonfinite::kSkip) {
      decision.skipped = true;
      return decision;
    }
    if (rule.nonfinite == OnNonfinite::kZero) {
      decision.coefficient = 0;
      decision.skipped = decision.assign_zero = true;
      return decision;
    }
  }
  decision.coefficient = rule.pre_scale * Fraction(rule, total_norm);
  return decision;
}

}  // namespace gradclip
