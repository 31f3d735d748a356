// A made-up gradient in the memory of the device that is current, and copies of it there, which are
// what its measuring and scaling are compared with. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_GPU_DEVICE_GRADIENT_H_
#define GRADCLIP_TESTS_BENCH_GPU_DEVICE_GRADIENT_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device_tables.h"
#include "tests/bench/gpu/device_clock.h"

namespace gradclip::bench {

class DeviceGradient {
 public:
  // With room for so many bytes, twice. REQUIRES: a multiple of 1 MiB.
  static absl::StatusOr<std::unique_ptr<DeviceGradient>> Make(size_t room);

  // From now on it is tensors of so many elements, one after another. REQUIRES: they have room.
  absl::Status Fill(DType dtype, const std::vector<uint64_t>& elements);

  size_t room() const { return room_; }
  std::span<const DeviceRun> runs() const { return runs_; }  // one for each tensor
  uint64_t blocks() const { return blocks_; }                // of all of them
  uint64_t bytes() const { return bytes_; }

  // Queues copies that read and write `moved` bytes in all: half of them each.
  bool QueueCopy(CudaCalls& calls, cudaStream_t stream, uint64_t moved);

 private:
  explicit DeviceGradient(size_t room) : room_(room) {}

  const size_t room_;
  PinnedBytes staging_;
  DeviceBytes gradient_;
  DeviceBytes copy_;
  std::vector<DeviceRun> runs_;
  uint64_t blocks_ = 0;
  uint64_t bytes_ = 0;
};

// Tensors, and what they are called.
struct TensorSizes {
  std::string name;
  std::vector<uint64_t> elements;
};
// GPT-2 124M's, or two of them where it is to be quick.
TensorSizes Gpt2Sizes(bool quick);

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_GPU_DEVICE_GRADIENT_H_
