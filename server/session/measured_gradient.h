// What has been measured of one call's gradient, in stream order: begins and ends its tensors, adds
// up the total, counts and names elements that are not finite, and lists tensors in the answer. Not
// thread-safe; one per call.
#ifndef GRADCLIP_SERVER_SESSION_MEASURED_GRADIENT_H_
#define GRADCLIP_SERVER_SESSION_MEASURED_GRADIENT_H_

#include <cstddef>
#include <cstdint>

#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"
#include "server/norm/gradient_norm.h"
#include "server/norm/norm_partial.h"
#include "server/norm/pieces.h"
#include "server/session/call_spec.h"

namespace gradclip {

class MeasuredGradient {
 public:
  // All must outlive this. Of `result` the non-finite elements and the list of tensors are set.
  MeasuredGradient(const Backend& backend, const CallSpec& spec, v1::NormResult& result);

  // The next elements, all of one tensor: to be measured here,
  void Add(const std::byte* elements, uint64_t count);
  // or measured elsewhere, as GradientNorm::AddBlocks() takes them.
  void AddBlocks(const NormPartial& sum, const TensorSummary& found, uint64_t count);

  // Whole tensors, measured elsewhere: `count` from `first` on.
  void AddTensors(const PiecesNorm& measured, size_t first, size_t count);

  // Counted elements of blocks that AddBlocks() is given without their sum, as nobody asks which
  // tensor had how much. REQUIRES: not per_tensor.
  void AddToTotal(const NormPartial& sum) { norm_.AddTensors(sum); }

  // All elements are in.
  void End() { EnterTensor(); }
  const NormPartial& total() const { return norm_.total(); }

 private:
  void EnterTensor();  // begins the tensor at hand; ends those that have no (more) elements
  void LeaveTensor(const TensorSummary& summary);

  const CallSpec& spec_;
  v1::NormResult& result_;
  GradientNorm norm_;
  size_t tensor_ = 0;
  uint64_t elements_ = 0;  // of it, so far
  bool in_tensor_ = false;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_MEASURED_GRADIENT_H_
