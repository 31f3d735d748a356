// What measuring on a GPU takes: memory there, pinned memory, and the time that queued work takes
// there. All is of the device that is current. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_GPU_DEVICE_CLOCK_H_
#define GRADCLIP_TESTS_BENCH_GPU_DEVICE_CLOCK_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/cuda/cuda_device.h"

namespace gradclip::bench {

// UNAVAILABLE where one of the calls has failed.
absl::Status StatusOf(const CudaCalls& calls);

struct FreeDeviceMemory {
  void operator()(std::byte* memory) const { (void)cudaFree(memory); }
};
using DeviceBytes = std::unique_ptr<std::byte, FreeDeviceMemory>;
absl::StatusOr<DeviceBytes> AllocateOnDevice(size_t bytes);

struct FreePinnedMemory {
  void operator()(std::byte* memory) const { (void)cudaFreeHost(memory); }
};
using PinnedBytes = std::unique_ptr<std::byte, FreePinnedMemory>;
absl::StatusOr<PinnedBytes> AllocatePinned(size_t bytes);

class DeviceClock {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceClock>> Make();
  ~DeviceClock();
  DeviceClock(const DeviceClock&) = delete;
  DeviceClock& operator=(const DeviceClock&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Seconds from when the device begins with what `queue` puts into the stream until it is done.
  absl::StatusOr<double> TimeOf(absl::FunctionRef<bool(CudaCalls&)> queue);

 private:
  DeviceClock() = default;

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_GPU_DEVICE_CLOCK_H_
