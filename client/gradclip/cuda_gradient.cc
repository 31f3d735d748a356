#include "gradclip/cuda_gradient.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "client/gradclip/overlap.h"
#include "client/gradclip/shared_calls.h"
#include "client/gradclip/shared_layout.h"

namespace gradclip {
namespace {

// How long a server may take to let go where nobody asks whether it has.
constexpr absl::Duration kReleaseTimeout = absl::Seconds(5);

absl::Status CheckAlignment(const CudaMemory& memory, std::span<const Tensor> tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t element_size = ElementSize(tensors[i].dtype);
    if (memory.offset % element_size == 0) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "tensor %s: the memory begins at byte %d of its allocation, which is no multiple of %d, "
        "the "
        "size of an %s element",
        DescribeTensor(tensors[i], i), memory.offset, element_size, Name(tensors[i].dtype)));
  }
  return absl::OkStatus();
}

// By their places, for they have no addresses here.
absl::Status CheckApart(std::span<const Tensor> tensors, std::span<const uint64_t> offsets) {
  std::vector<Tensor> placed(tensors.begin(), tensors.end());
  for (size_t i = 0; i < placed.size(); ++i) placed[i].data = reinterpret_cast<void*>(offsets[i]);
  return CheckOverlap(placed);
}

}  // namespace

absl::StatusOr<CudaGradient> CudaGradient::Make(Client& client, const CudaMemory& memory,
                                                std::span<const Tensor> tensors,
                                                std::span<const uint64_t> offsets,
                                                CudaGradientOptions options) {
  const auto declaration = Declaration::Make(tensors);
  if (!declaration.ok()) return declaration.status();
  if (absl::Status places = CheckPlaces(tensors, offsets, memory.bytes); !places.ok()) {
    return places;
  }
  if (absl::Status aligned = CheckAlignment(memory, tensors); !aligned.ok()) return aligned;
  if (absl::Status apart = CheckApart(tensors, offsets); !apart.ok()) return apart;
  SharedGradientOptions shared;
  shared.require_shared = true;
  shared.server_uids = std::move(options.server_uids);
  shared.ask_again_after = absl::ZeroDuration();  // there is no other way that could be taken
  return CudaGradient(std::make_unique<SharedCalls>(client, *client.core_, *declaration, memory,
                                                    tensors, offsets, std::move(shared)));
}

CudaGradient::CudaGradient(std::unique_ptr<SharedCalls> calls) : calls_(std::move(calls)) {}
CudaGradient::CudaGradient(CudaGradient&&) noexcept = default;

CudaGradient& CudaGradient::operator=(CudaGradient&& other) noexcept {
  if (calls_ != nullptr) (void)Release(kReleaseTimeout);
  calls_ = std::move(other.calls_);
  return *this;
}

CudaGradient::~CudaGradient() {
  if (calls_ != nullptr) (void)Release(kReleaseTimeout);
}

absl::StatusOr<NormAnswer> CudaGradient::ComputeNorm(const NormOptions& options,
                                                     const CallOptions& call) {
  return calls_->ComputeNorm(options, call);
}

absl::StatusOr<ClipAnswer> CudaGradient::Clip(const ClipOptions& options, const CallOptions& call) {
  return calls_->Clip(options, call);
}

bool CudaGradient::Release(absl::Duration patience) {
  return calls_->Release(patience);
}

}  // namespace gradclip
