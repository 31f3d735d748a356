// A call's queue of work on one GPU. Not thread-safe, as every DeviceQueue.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_CUDA_QUEUE_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_CUDA_QUEUE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "server/backend/cuda/cuda_device.h"
#include "server/backend/cuda/kernels.h"
#include "server/backend/device.h"

namespace gradclip {

class CudaQueue final : public DeviceQueue {
 public:
  // As Devices::Open(); `device` must outlive the queue.
  static absl::StatusOr<std::unique_ptr<DeviceQueue>> Open(CudaDevice& device,
                                                           uint64_t slots_filled, bool keeps);
  ~CudaQueue() override;

  std::string_view name() const override { return device_.name(); }
  size_t slots() const override { return pipeline_->slots.size(); }
  std::byte* slot(size_t slot) override { return pipeline_->slots[slot].host->data; }

  absl::Status Measure(size_t slot, size_t bytes, std::span<const DeviceRun> runs, NormKind kind,
                       bool per_block) override;
  absl::StatusOr<DeviceFound> Await(size_t slot) override;
  absl::Status Scale(size_t piece, double coefficient, bool assign_zero) override;
  absl::Status Fetch(size_t piece, size_t slot) override;

 private:
  // What lies in a piece.
  struct Content {
    size_t bytes = 0;
    DeviceRuns runs;
  };

  CudaQueue(CudaDevice& device, std::unique_ptr<CudaDevice::Pipeline> pipeline,
            std::vector<DevicePiece*> pieces, bool keeps)
      : device_(device),
        pipeline_(std::move(pipeline)),
        pieces_(std::move(pieces)),
        keeps_(keeps) {}

  // Makes the device current; the first error that there was, where there was one.
  absl::Status Begin();
  // Notes what came of the calls.
  absl::Status Note(const CudaCalls& calls);

  CudaDevice& device_;
  std::unique_ptr<CudaDevice::Pipeline> pipeline_;
  const std::vector<DevicePiece*>
      pieces_;  // keeps_: in the order of Measure(); else one for each slot
  const bool keeps_;
  absl::Status status_;
  std::vector<Content> contents_;       // keeps_: of the pieces that there are
  std::array<uint64_t, 3> found_ = {};  // blocks, of each slot's last Measure() with per_block
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_CUDA_QUEUE_H_
