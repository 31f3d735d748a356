// Memory of another process on a GPU, opened by its IPC handle. Thread-safe, as every DeviceMemory.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_CUDA_MEMORY_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_CUDA_MEMORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/cuda/cuda_in_place.h"
#include "server/backend/device.h"

namespace gradclip {

class CudaMemory final : public DeviceMemory {
 public:
  // REQUIRES: it is memory of the device of `in_place`, which must outlive this. Errors: as
  // Devices::OpenMemory().
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Open(CudaInPlace& in_place,
                                                            const ExportedMemory& memory);
  ~CudaMemory() override;

  std::string_view device() const override { return in_place_.device().name(); }
  uint64_t address() const override { return address_; }

  absl::Status Measure(std::span<const DeviceRun> runs, NormKind kind, bool per_block,
                       Take take) override {
    return in_place_.Measure(runs, kind, per_block, take);
  }
  absl::Status Scale(std::span<const DeviceRun> runs, double coefficient,
                     bool assign_zero) override {
    return in_place_.Scale(runs, coefficient, assign_zero);
  }
  absl::Status Fetch(uint64_t address, std::span<std::byte> bytes) override {
    return in_place_.Fetch(address, bytes);
  }

 private:
  CudaMemory(CudaInPlace& in_place, void* allocation)
      : in_place_(in_place), allocation_(allocation) {}

  // Sets address_, where all of the memory is in the allocation.
  absl::Status Place(const ExportedMemory& memory);

  CudaInPlace& in_place_;
  void* const allocation_;  // as it was opened
  uint64_t address_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_CUDA_MEMORY_H_
