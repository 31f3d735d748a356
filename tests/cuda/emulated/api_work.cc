// Copies, memsets and launches.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "block.h"
#include "crash_report.h"
#include "device_language.h"
#include "runtime.h"
#include "runtime_api.h"

namespace gradclip::emulated_cuda {
namespace device {

constinit CheckedRange checked_load;
constinit CheckedRange checked_store;

void Forget(CheckedRange& cache) {
  cache.first.store(1, std::memory_order_relaxed);
  cache.bytes.store(0, std::memory_order_relaxed);
}

}  // namespace device

namespace {

constexpr size_t kMaxSharedBytes = 48 << 10;

bool IsDevice(const Region* region) {
  return region != nullptr && (region->space == Space::kDevice || region->space == Space::kMapped);
}

bool Contains(const Region& region, const void* pointer, size_t bytes) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - region.base);
  return bytes <= region.bytes - offset;
}

enum class Pageable { kRefused, kAllowed };

cudaError_t CheckCopy(Runtime& runtime, const void* to, const void* from, size_t count,
                      cudaMemcpyKind kind, Pageable pageable) {
  const Region* const target = runtime.memory.Find(to);
  const Region* const source = runtime.memory.Find(from);
  for (const auto& [region, pointer] : {std::pair(target, to), std::pair(source, from)}) {
    if (region == nullptr && pageable == Pageable::kRefused) {
      runtime.Tell("cudaMemcpyAsync from or to pageable host memory");
      return cudaErrorInvalidValue;
    }
    if (region != nullptr && !Contains(*region, pointer, count)) {
      runtime.Tell("a copy reaches beyond its allocation");
      return cudaErrorInvalidValue;
    }
  }
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
    return cudaErrorInvalidMemcpyDirection;
  }
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device != IsDevice(target) || from_device != IsDevice(source)) {
    runtime.Tell("a copy's kind contradicts its pointers");
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

void Copy(Runtime& runtime, void* to, const void* from, size_t count) {
  for (const void* const pointer : {static_cast<const void*>(to), from}) {
    Region* const region = runtime.memory.Find(pointer);
    if (region != nullptr) runtime.memory.Open(*region);
  }
  std::memmove(to, from, count);
}

cudaError_t CheckMemset(Runtime& runtime, const void* pointer, size_t count) {
  const Region* const region = runtime.memory.Find(pointer);
  if (region == nullptr || !Contains(*region, pointer, count)) {
    runtime.Tell("a memset of memory that no device may touch, or beyond an allocation");
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

void Fill(Runtime& runtime, void* pointer, int value, size_t count) {
  Region* const region = runtime.memory.Find(pointer);
  if (region != nullptr) runtime.memory.Open(*region);
  std::memset(pointer, value, count);
}

cudaError_t CheckLaunch(Runtime& runtime, const cudaLaunchConfig_t& config, const Stream* stream) {
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const auto threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535 || threads == 0 || threads > 1024 || block.z > 64) {
    runtime.Tell("a launch of no block, no thread or too many");
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > kMaxSharedBytes) {
    runtime.Tell("a launch with more than 48 KiB of dynamic shared memory");
    return cudaErrorInvalidValue;
  }
  if (stream == nullptr || stream->device != runtime.device()) {
    runtime.Tell("a launch in no stream of the current device");
    return cudaErrorInvalidResourceHandle;
  }
  if (config.numAttrs != 0) return cudaErrorNotSupported;
  const auto device = static_cast<size_t>(runtime.device());
  if (!runtime.options.devices[device].has_kernel_image) return cudaErrorNoKernelImageForDevice;
  return cudaSuccess;
}

// Whether kernels of this device may touch the region.
bool Reaches(const Region& region, int device) {
  return !IsDevice(&region) || region.user == device;
}

KernelResult CheckArguments(Runtime& runtime, const std::vector<const void*>& pointers,
                            int device) {
  for (const void* const pointer : pointers) {
    if (pointer == nullptr) continue;
    // One past an allocation's end is a pointer that kernels are given too.
    const Region* region = runtime.memory.Find(pointer);
    if (region == nullptr) region = runtime.memory.Find(static_cast<const char*>(pointer) - 1);
    if (region != nullptr && Reaches(*region, device)) continue;
    return {cudaErrorIllegalAddress,
            region == nullptr ? "a kernel is given a pointer to pageable host memory"
                              : "a kernel is given a pointer to another device's memory"};
  }
  return {};
}

void RunLaunch(Runtime& runtime, int device, const cudaLaunchConfig_t& config,
               const std::vector<const void*>& pointers, const std::function<void()>& body) {
  KernelResult result = CheckArguments(runtime, pointers, device);
  if (result.error == cudaSuccess) {
    runtime.running_device = device;
    runtime.memory.OpenFor(device);
    device::Forget(device::checked_load);
    device::Forget(device::checked_store);
    const bool mixed = runtime.options.mode == Mode::kRandom;
    const CrashReport report;
    result = RunGrid(config.gridDim, config.blockDim, body, mixed ? &runtime.random : nullptr);
    const std::string overrun = runtime.memory.FindOverrun();
    if (result.error == cudaSuccess && !overrun.empty()) {
      result = {cudaErrorIllegalAddress, "a kernel made " + overrun};
    }
  }
  if (result.error == cudaSuccess) return;
  runtime.Tell(result.message);
  runtime.FailWork(device, result.error, true);
}

}  // namespace

namespace device {

void CheckRange(const void* pointer, size_t bytes, CheckedRange& cache) {
  Runtime& runtime = TheRuntime();
  const Region* const region = runtime.memory.Find(pointer);
  char text[32];
  std::snprintf(text, sizeof text, "%p", pointer);
  if (region == nullptr || !Reaches(*region, runtime.running_device)) {
    FailKernel(cudaErrorIllegalAddress,
               std::string("an access at ") + text + ", which this device may not touch");
  }
  if (!Contains(*region, pointer, bytes)) {
    FailKernel(cudaErrorIllegalAddress,
               std::string("an access at ") + text + " reaches beyond its allocation");
  }
  cache.first.store(reinterpret_cast<uintptr_t>(region->base), std::memory_order_relaxed);
  cache.bytes.store(region->bytes, std::memory_order_relaxed);
}

void FailMisaligned(const void* pointer, size_t alignment) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", pointer);
  FailKernel(cudaErrorMisalignedAddress, std::string("an access at ") + text +
                                             " is not aligned to " + std::to_string(alignment) +
                                             " bytes");
}

}  // namespace device

cudaError_t Launch(const cudaLaunchConfig_t* config, std::vector<const void*> pointers,
                   std::function<void()> body) {
  return Call("cudaLaunchKernelExC", CallKind::kWork, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(config->stream);
    const cudaError_t error = CheckLaunch(runtime, *config, stream.get());
    if (error != cudaSuccess) return error;
    runtime.EnqueueWork(stream, [&runtime, device = stream->device, config = *config,
                                 pointers = std::move(pointers), body = std::move(body)] {
      RunLaunch(runtime, device, config, pointers, body);
    });
    return cudaSuccess;
  });
}

}  // namespace gradclip::emulated_cuda

using namespace gradclip::emulated_cuda;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind kind,
                            cudaStream_t handle) {
  return Call("cudaMemcpyAsync", CallKind::kWork, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (count == 0) return cudaSuccess;
    const cudaError_t error = CheckCopy(runtime, to, from, count, kind, Pageable::kRefused);
    if (error != cudaSuccess) return error;
    runtime.EnqueueWork(stream, [&runtime, to, from, count] { Copy(runtime, to, from, count); });
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t count, cudaStream_t handle) {
  return Call("cudaMemsetAsync", CallKind::kWork, [&](Runtime& runtime) {
    const auto stream = runtime.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (count == 0) return cudaSuccess;
    const cudaError_t error = CheckMemset(runtime, pointer, count);
    if (error != cudaSuccess) return error;
    runtime.EnqueueWork(
        stream, [&runtime, pointer, value, count] { Fill(runtime, pointer, value, count); });
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t count, cudaMemcpyKind kind) {
  return Call("cudaMemcpy", CallKind::kWork, [&](Runtime& runtime) {
    if (count == 0) return cudaSuccess;
    const cudaError_t error = CheckCopy(runtime, to, from, count, kind, Pageable::kAllowed);
    if (error != cudaSuccess) return error;
    const auto stream = runtime.FindStream(nullptr);
    runtime.EnqueueWork(stream, [&runtime, to, from, count] { Copy(runtime, to, from, count); });
    runtime.RunAll(*stream);
    return runtime.Waited(stream->device);
  });
}

cudaError_t cudaMemset(void* pointer, int value, size_t count) {
  return Call("cudaMemset", CallKind::kWork, [&](Runtime& runtime) {
    if (count == 0) return cudaSuccess;
    const cudaError_t error = CheckMemset(runtime, pointer, count);
    if (error != cudaSuccess) return error;
    const auto stream = runtime.FindStream(nullptr);
    runtime.EnqueueWork(
        stream, [&runtime, pointer, value, count] { Fill(runtime, pointer, value, count); });
    runtime.RunAll(*stream);
    return runtime.Waited(stream->device);
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return Call("cudaFuncGetAttributes", CallKind::kDevice, [&](Runtime& runtime) {
    if (attributes == nullptr || function == nullptr) return cudaErrorInvalidDeviceFunction;
    const Device& device = runtime.options.devices[static_cast<size_t>(runtime.device())];
    if (!device.has_kernel_image) return cudaErrorNoKernelImageForDevice;
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 10 * device.major + device.minor;
    attributes->maxDynamicSharedSizeBytes = kMaxSharedBytes;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_size, size_t dynamic_bytes) {
  return Call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", CallKind::kDevice,
              [&](Runtime& runtime) {
                if (function == nullptr) return cudaErrorInvalidDeviceFunction;
                if (block_size < 1) return cudaErrorInvalidValue;
                const auto device = static_cast<size_t>(runtime.device());
                if (!runtime.options.devices[device].has_kernel_image) {
                  return cudaErrorNoKernelImageForDevice;
                }
                const bool fits = block_size <= 1024 && dynamic_bytes <= kMaxSharedBytes;
                *blocks = fits ? std::min(32, 2048 / block_size) : 0;
                return cudaSuccess;
              });
}
