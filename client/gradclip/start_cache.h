// The serialised tensor declarations of the last few gradients. A training step declares the same
// tensors as the step before; building 4,000 declarations costs ten times what comparing them does.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_START_CACHE_H_
#define GRADCLIP_CLIENT_GRADCLIP_START_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gradclip/client.h"
#include "grpcpp/support/slice.h"

namespace gradclip {

// The tensor as messages name it: its name in quotes, "#3" for the fourth where it has none.
std::string DescribeTensor(const Tensor& tensor, size_t index);

// The tensors of one gradient without their data: names, dtypes, shapes, replicas. Immutable.
class Declaration {
 public:
  // INVALID_ARGUMENT, naming tensor and field, for a name that is not UTF-8, an unknown dtype and a
  // shape that has a negative extent or more than 2^63 - 1 bytes (a gradient that has).
  static absl::StatusOr<std::shared_ptr<const Declaration>> Make(std::span<const Tensor> tensors);

  // The fields `tensors` of ComputeNormStart and ClipGradNormStart (the same number in both).
  const grpc::Slice& serialised() const { return serialised_; }
  uint64_t gradient_bytes() const { return gradient_bytes_; }

  bool Matches(std::span<const Tensor> tensors) const;

 private:
  Declaration() = default;

  size_t tensors_ = 0;
  std::string key_;  // what Make() was given, packed to be compared in one pass
  grpc::Slice serialised_;
  uint64_t gradient_bytes_ = 0;
};

class StartCache {
 public:
  // Errors as Declaration::Make.
  absl::StatusOr<std::shared_ptr<const Declaration>> Get(std::span<const Tensor> tensors);

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<const Declaration>> kept_;  // newest last; guarded by mutex_
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_START_CACHE_H_
