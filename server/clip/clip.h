// From a total norm to what is done with the elements: the coefficient and the policies for a norm
// that is not finite. Pure functions.
#ifndef GRADCLIP_SERVER_CLIP_CLIP_H_
#define GRADCLIP_SERVER_CLIP_CLIP_H_

namespace gradclip {

// What happens where the total norm is NaN or infinite; the contract's NonfinitePolicy.
enum class OnNonfinite { kPropagate, kError, kSkip, kZero };

struct ClipRule {
  double max_norm = 0;    // >= 0; +infinity never clips
  double epsilon = 1e-6;  // finite, >= 0
  double pre_scale = 1;   // finite, > 0
  OnNonfinite nonfinite = OnNonfinite::kPropagate;
};

// What every element is multiplied by, or assigned.
struct ClipDecision {
  double coefficient = 1;
  bool clipped = false;      // total_norm + epsilon > max_norm
  bool skipped = false;      // the policy kSkip or kZero took effect
  bool assign_zero = false;  // elements become +0, whatever they were
};

// The decision for `total_norm` (pre_scale included). The policy kError is the caller's to act on
// before: here it counts as kPropagate.
//   coefficient = pre_scale * min(1, max_norm / (total_norm + epsilon)), 0 / 0 counting as 1, NaN
//   staying NaN, and max_norm = +infinity giving pre_scale always
// (torch.nn.utils.clip_grad_norm_ for pre_scale 1 and epsilon 1e-6).
ClipDecision Decide(const ClipRule& rule, double total_norm);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_CLIP_CLIP_H_
