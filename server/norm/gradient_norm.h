// Measures one gradient, run of elements after run of elements, tensor after tensor. Cuts each
// tensor into blocks, has the backend sum them, and keeps the counts. Not thread-safe; one per
// call.
#ifndef GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_
#define GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_

#include <cstddef>
#include <cstdint>

#include "server/backend/backend.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// What was found in one tensor.
struct TensorSummary {
  double norm = 0;                                  // 0 unless per_tensor; without pre_scale
  uint64_t nonfinite = 0;                           // NaN and infinity
  uint64_t first_nonfinite = ElementCounts::kNone;  // flat index
  uint64_t zeros = 0;                               // 0 unless per_tensor
};

class GradientNorm {
 public:
  // `backend` must outlive this. per_tensor: EndTensor() also gives each tensor's norm and zeros.
  GradientNorm(const Backend& backend, double norm_type, bool per_tensor);

  // The next tensor. counted = false: measured for EndTensor() alone, left out of total().
  void BeginTensor(DType dtype, bool counted);
  // Its next elements; any number of runs of any length, any alignment.
  void Add(const std::byte* elements, size_t count);
  TensorSummary EndTensor();

  // Over all counted tensors that have ended.
  const NormPartial& total() const;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NORM_GRADIENT_NORM_H_
