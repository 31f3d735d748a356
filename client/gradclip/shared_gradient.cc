#include "gradclip/shared_gradient.h"

#include <utility>

#include "client/gradclip/overlap.h"
#include "client/gradclip/shared_calls.h"
#include "client/gradclip/shared_layout.h"

namespace gradclip {

absl::StatusOr<SharedGradient> SharedGradient::Make(Client& client, std::span<const Tensor> tensors,
                                                    SharedGradientOptions options) {
  const auto declaration = Declaration::Make(tensors);
  if (!declaration.ok()) return declaration.status();
  const absl::StatusOr<SharedLayout> layout = LayOut(tensors);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<SharedMemory> memory = SharedMemory::Create(layout->bytes);
  if (!memory.ok()) return memory.status();
  return SharedGradient(std::make_unique<SharedCalls>(client, *client.core_, *declaration,
                                                      *std::move(memory), tensors, layout->offsets,
                                                      std::move(options)));
}

absl::StatusOr<SharedGradient> SharedGradient::Adopt(Client& client, int memfd,
                                                     std::span<const Tensor> tensors,
                                                     std::span<const uint64_t> offsets,
                                                     SharedGradientOptions options) {
  const auto declaration = Declaration::Make(tensors);
  if (!declaration.ok()) return declaration.status();
  absl::StatusOr<SharedMemory> memory = SharedMemory::Adopt(memfd);
  if (!memory.ok()) return memory.status();
  absl::Status places = CheckPlaces(tensors, offsets, memory->size());
  if (!places.ok()) return places;
  auto calls =
      std::make_unique<SharedCalls>(client, *client.core_, *declaration, *std::move(memory),
                                    tensors, offsets, std::move(options));
  if (absl::Status apart = CheckOverlap(calls->tensors()); !apart.ok()) return apart;
  return SharedGradient(std::move(calls));
}

SharedGradient::SharedGradient(std::unique_ptr<SharedCalls> calls) : calls_(std::move(calls)) {}
SharedGradient::~SharedGradient() = default;
SharedGradient::SharedGradient(SharedGradient&&) noexcept = default;
SharedGradient& SharedGradient::operator=(SharedGradient&&) noexcept = default;

std::span<const Tensor> SharedGradient::tensors() const {
  return calls_->tensors();
}

absl::StatusOr<NormAnswer> SharedGradient::ComputeNorm(const NormOptions& options,
                                                       const CallOptions& call) {
  return calls_->ComputeNorm(options, call);
}

absl::StatusOr<ClipAnswer> SharedGradient::Clip(const ClipOptions& options,
                                                const CallOptions& call) {
  return calls_->Clip(options, call);
}

bool SharedGradient::shared() const {
  return calls_->shared();
}

const absl::Status& SharedGradient::refusal() const {
  return calls_->refusal();
}

}  // namespace gradclip
