// What a whole call must answer, from its start message and its gradient alone: an own reading of
// the contract, computed slowly and plainly, that shares nothing with the server but the element
// types.
#ifndef GRADCLIP_TESTS_MODEL_ANSWER_H_
#define GRADCLIP_TESTS_MODEL_ANSWER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {

using Tensors = google::protobuf::RepeatedPtrField<v1::TensorSpec>;

// The gradient's bytes; none where a tensor can't be or they are more than int64 counts.
std::optional<uint64_t> DeclaredBytes(const Tensors& tensors);

// The status of a call with this start and `gradient_bytes` of data, where the server keeps at most
// `max_call_bytes`. What the norm's value decides (NONFINITE_ERROR) is left out, unless it is
// given.
absl::StatusCode ModelVerdict(const v1::ComputeNormStart& start, uint64_t gradient_bytes);
absl::StatusCode ModelVerdict(const v1::ClipGradNormStart& start, uint64_t gradient_bytes,
                              uint64_t max_call_bytes);

// The norms that count as right for one set of elements: the exact one times pre_scale, 1e-12 (for
// p other than 1, 2 and infinity 1e-12 / min(1, p)) and one subnormal step to both sides.
struct NormRange {
  double low = 0;
  double high = 0;  // both NaN where the norm is

  bool Holds(double norm) const;
};

struct ModelTensor {
  NormRange norm;
  uint64_t nonfinite_elements = 0;
  uint64_t zero_elements = 0;
};

struct ModelNorm {
  NormRange total;
  uint64_t nonfinite_elements = 0;
  std::string first_nonfinite;
  std::vector<ModelTensor> tensors;  // all of them, whether or not per_tensor is set
};

// REQUIRES: ModelVerdict() is OK.
ModelNorm ModelMeasure(const v1::ClipGradNormStart& start, std::string_view gradient);

// The result for a norm, all but result.norm. REQUIRES: ModelVerdict() is OK, and the norm is
// finite where the policy is NONFINITE_ERROR.
v1::ClipResult ModelDecide(const v1::ClipGradNormStart& start, double total_norm);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_MODEL_ANSWER_H_
