// What a SharedGradient and a CudaGradient are made of: a gradient in memory that may be shared,
// its registration, and its calls. Belongs to one thread.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SHARED_CALLS_H_
#define GRADCLIP_CLIENT_GRADCLIP_SHARED_CALLS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/client_core.h"
#include "client/gradclip/connection.h"
#include "client/gradclip/group_tries.h"
#include "client/gradclip/registered_region.h"
#include "client/gradclip/shared_memory.h"
#include "client/gradclip/shared_ranges.h"
#include "client/gradclip/start_cache.h"
#include "gradclip/client.h"
#include "gradclip/cuda_gradient.h"
#include "gradclip/shared_gradient.h"

namespace gradclip {

class SharedCalls {
 public:
  using Memory = std::variant<SharedMemory, CudaMemory>;

  // REQUIRES: of CUDA memory, which can't be streamed, that options.require_shared is set.
  SharedCalls(Client& client, ClientCore& core, std::shared_ptr<const Declaration> declaration,
              Memory memory, std::span<const Tensor> tensors, std::span<const uint64_t> offsets,
              SharedGradientOptions options);

  absl::StatusOr<NormAnswer> ComputeNorm(const NormOptions& options, const CallOptions& call);
  absl::StatusOr<ClipAnswer> Clip(const ClipOptions& options, const CallOptions& call);

  // With data, where the memory is mapped here.
  std::span<const Tensor> tensors() const { return tensors_; }
  bool shared() const { return shared_; }
  const absl::Status& refusal() const { return refusal_; }

  // As of RegisteredRegion.
  bool Release(absl::Duration patience) { return region_.Release(patience); }

 private:
  // One try of a call over shared memory. Where it failed, `changed` says whether the memory may be
  // another than before.
  // `group` as GroupTries gives it.
  using Run = absl::FunctionRef<absl::Status(Connection& connection, OutgoingRanges& ranges,
                                             const grpc::Slice& group, bool& changed)>;

  // Runs the call over shared memory, where that can be, with all its tries; afterwards shared_
  // says whether it was. An error is the call's.
  absl::Status Share(absl::Time deadline, const CallOptions& call, bool writable, GroupTries& tries,
                     Run run);
  absl::Status TryShared(Connection& connection, absl::Time deadline, bool writable,
                         const grpc::Slice& group, Run run, bool& changed);

  // Whether this library can read and scale the memory itself.
  bool mapped() const { return std::holds_alternative<SharedMemory>(memory_); }

  // Says that the call is streamed, where that is new; an error where it may not be.
  absl::Status FallBack();

  // The start message: the tensors, `options` and `group`.
  grpc::ByteBuffer Start(const grpc::Slice& options, const grpc::Slice& group) const;

  Client& client_;
  ClientCore& core_;
  const std::shared_ptr<const Declaration> declaration_;
  const Memory memory_;
  const std::vector<Tensor> tensors_;
  const std::vector<Tensor> runs_;  // mapped(): the same memory in fewer pieces
  const SharedGradientOptions options_;
  RegisteredRegion region_;
  bool shared_ = false;
  bool warned_ = false;  // since a call last went through shared memory
  absl::Status refusal_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SHARED_CALLS_H_
