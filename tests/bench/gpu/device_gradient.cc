#include "tests/bench/gpu/device_gradient.h"

#include <algorithm>
#include <utility>

#include "server/backend/element.h"
#include "tests/bench/elements.h"

namespace gradclip::bench {
namespace {

// Elements come to the device in pieces of so many bytes.
constexpr size_t kFillBytes = size_t{1} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGradient>> DeviceGradient::Make(size_t room) {
  std::unique_ptr<DeviceGradient> made(new DeviceGradient(room));
  for (DeviceBytes* memory : {&made->gradient_, &made->copy_}) {
    absl::StatusOr<DeviceBytes> allocated = AllocateOnDevice(room);
    if (!allocated.ok()) return allocated.status();
    *memory = *std::move(allocated);
  }
  absl::StatusOr<PinnedBytes> staging = AllocatePinned(kFillBytes);
  if (!staging.ok()) return staging.status();
  made->staging_ = *std::move(staging);
  return made;
}

absl::Status DeviceGradient::Fill(DType dtype, const std::vector<uint64_t>& elements) {
  FillElements(dtype, {staging_.get(), kFillBytes});
  CudaCalls calls;
  bool ok = true;
  for (size_t at = 0; ok && at < room_; at += kFillBytes) {
    ok = calls.Ok("cudaMemcpy", cudaMemcpy(gradient_.get() + at, staging_.get(), kFillBytes,
                                           cudaMemcpyHostToDevice));
  }
  runs_.clear();
  blocks_ = 0;
  bytes_ = 0;
  for (const uint64_t count : elements) {
    runs_.push_back({.address = reinterpret_cast<uint64_t>(gradient_.get() + bytes_),
                     .elements = count,
                     .first_block = blocks_,
                     .dtype = dtype});
    blocks_ += (count + kBlockElements - 1) / kBlockElements;
    bytes_ += count * ElementSize(dtype);
  }
  return StatusOf(calls);
}

bool DeviceGradient::QueueCopy(CudaCalls& calls, cudaStream_t stream, uint64_t moved) {
  bool ok = true;
  for (uint64_t left = moved / 2; ok && left > 0;) {
    const uint64_t now = std::min<uint64_t>(left, room_);
    ok = calls.Ok("cudaMemcpyAsync", cudaMemcpyAsync(copy_.get(), gradient_.get(), now,
                                                     cudaMemcpyDeviceToDevice, stream));
    left -= now;
  }
  return ok;
}

TensorSizes Gpt2Sizes(bool quick) {
  if (quick) return {"2 tensors", {768, 768 * 64}};
  TensorSizes sizes = {"GPT-2 124M's 148 tensors", {}};
  for (const std::vector<int64_t>& shape : Gpt2Shapes()) {
    uint64_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<uint64_t>(extent);
    sizes.elements.push_back(count);
  }
  return sizes;
}

}  // namespace gradclip::bench
