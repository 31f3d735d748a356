// What a call's start message declares, checked and in our own terms. Values and pure functions.
#ifndef GRADCLIP_SERVER_SESSION_CALL_SPEC_H_
#define GRADCLIP_SERVER_SESSION_CALL_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gradclip/dtype.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/clip/clip.h"
#include "server/group/participant.h"

namespace gradclip {

struct TensorDeclaration {
  std::string name;
  DType dtype = DType::kFloat32;
  bool replica = false;
  uint64_t elements = 0;

  uint64_t bytes() const { return elements * ElementSize(dtype); }
};

// Adjacent bytes of one dtype in the gradient, across tensors.
struct DTypeRun {
  DType dtype = DType::kFloat32;
  uint64_t bytes = 0;
};

struct CallSpec {
  std::vector<TensorDeclaration> tensors;
  double norm_type = 2;
  bool per_tensor = false;
  ClipRule rule;  // ClipGradNorm only, but for rule.pre_scale
  v1::ReplyMode reply = v1::REPLY_COEFFICIENT;
  std::optional<double> total_norm;  // given by the caller, pre_scale included
  // The contract's Group, and what its ranks must declare alike. timeout is infinite where none was
  // given; account is the caller's to fill in.
  std::optional<Participant> group;

  uint64_t gradient_bytes = 0;
  std::vector<DTypeRun> runs;  // the whole gradient, by dtype
};

// The tensor as messages name it: its name in quotes, "#3" for the fourth where it has none.
std::string DescribeTensor(const std::string& name, size_t index);

// Takes the tensors' names out of `start`. INVALID_ARGUMENT for a field outside its range, naming
// tensor, field and numbers. How many tensors and dimensions there may be is checked before the
// message is parsed, in wire/.
absl::StatusOr<CallSpec> MakeCallSpec(v1::ComputeNormStart&& start);
absl::StatusOr<CallSpec> MakeCallSpec(v1::ClipGradNormStart&& start);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_CALL_SPEC_H_
