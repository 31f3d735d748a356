// One GPU's work on memory where it lies: one piece of work after another, each with all of the
// GPU. Thread-safe.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_CUDA_IN_PLACE_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_CUDA_IN_PLACE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/cuda/cuda_device.h"
#include "server/backend/device.h"

namespace gradclip {

class CudaInPlace {
 public:
  // Takes what it needs for good: a piece of the device's memory and as much that is pinned.
  // `device` must outlive it. RESOURCE_EXHAUSTED where there is no memory for them.
  static absl::StatusOr<std::unique_ptr<CudaInPlace>> Open(CudaDevice& device);
  ~CudaInPlace();

  CudaInPlace(const CudaInPlace&) = delete;
  CudaInPlace& operator=(const CudaInPlace&) = delete;

  CudaDevice& device() const { return device_; }

  // As DeviceMemory's methods, for any memory that the device reaches.
  absl::Status Measure(std::span<const DeviceRun> runs, NormKind kind, bool per_block,
                       DeviceMemory::Take take);
  absl::Status Scale(std::span<const DeviceRun> runs, double coefficient, bool assign_zero);
  absl::Status Fetch(uint64_t address, std::span<std::byte> bytes);

 private:
  explicit CudaInPlace(CudaDevice& device) : device_(device) {}

  absl::Status Begin();
  // Queues work on stream_, waits for it, and then has what it brought taken. REQUIRES: mutex_.
  absl::Status Run(absl::FunctionRef<void(CudaCalls& calls)> queue, absl::FunctionRef<void()> take);

  CudaDevice& device_;
  std::mutex mutex_;
  // Guarded by mutex_.
  cudaStream_t stream_ = nullptr;
  DevicePiece* host_ = nullptr;   // pinned
  DevicePiece* piece_ = nullptr;  // on the device
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_CUDA_IN_PLACE_H_
