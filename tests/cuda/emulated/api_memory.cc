// Allocation, pinned memory and IPC.
#include <bit>
#include <cstring>

#include "runtime.h"
#include "runtime_api.h"

namespace gradclip::emulated_cuda {
namespace {

constexpr char kMagic[16] = "emulated IPC";

// What a cudaIpcMemHandle_t holds.
struct Handle {
  char magic[16];
  Exported memory;
  char unused[8];
};
static_assert(sizeof(Handle) == sizeof(cudaIpcMemHandle_t));

cudaError_t Allocate(Runtime& runtime, void** pointer, size_t size) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = nullptr;
  if (size == 0) return cudaSuccess;
  const int device = runtime.device();
  const size_t total = runtime.options.devices[static_cast<size_t>(device)].memory;
  const size_t used = runtime.memory.device_bytes(device);
  if (size > total || used + size > total) return cudaErrorMemoryAllocation;
  *pointer = runtime.memory.AllocateDevice(device, size).base;
  return cudaSuccess;
}

cudaError_t AllocatePinned(Runtime& runtime, void** pointer, size_t size) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = nullptr;
  if (size == 0) return cudaSuccess;
  *pointer = runtime.memory.AllocatePinned(runtime.device(), size).base;
  return cudaSuccess;
}

// Frees what starts at the pointer, once no work is left that may use it.
cudaError_t Release(Runtime& runtime, void* pointer, Space space, cudaError_t if_none) {
  Region* const region = runtime.memory.Find(pointer);
  if (region == nullptr || region->base != pointer || region->space != space) {
    runtime.Tell("a pointer is released that is no such allocation's start");
    return if_none;
  }
  if (space == Space::kDevice || space == Space::kMapped) {
    runtime.RunDevice(region->user);
  } else {
    runtime.RunEverything();
  }
  runtime.memory.CloseAll();
  runtime.memory.Free(*region);
  return cudaSuccess;
}

}  // namespace
}  // namespace gradclip::emulated_cuda

using namespace gradclip::emulated_cuda;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return Call("cudaMemGetInfo", CallKind::kDevice, [&](Runtime& runtime) {
    *total = runtime.options.devices[static_cast<size_t>(runtime.device())].memory;
    *free = *total - runtime.memory.device_bytes(runtime.device());
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** pointer, size_t size) {
  return Call("cudaMalloc", CallKind::kDevice,
              [&](Runtime& runtime) { return Allocate(runtime, pointer, size); });
}

cudaError_t cudaFree(void* pointer) {
  return Call("cudaFree", CallKind::kRelease, [&](Runtime& runtime) {
    if (pointer == nullptr) return cudaSuccess;
    return Release(runtime, pointer, Space::kDevice, cudaErrorInvalidValue);
  });
}

cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
  return Call("cudaHostAlloc", CallKind::kDevice,
              [&](Runtime& runtime) { return AllocatePinned(runtime, pointer, size); });
}

cudaError_t cudaMallocHost(void** pointer, size_t size) {
  return Call("cudaMallocHost", CallKind::kDevice,
              [&](Runtime& runtime) { return AllocatePinned(runtime, pointer, size); });
}

cudaError_t cudaFreeHost(void* pointer) {
  return Call("cudaFreeHost", CallKind::kRelease, [&](Runtime& runtime) {
    if (pointer == nullptr) return cudaSuccess;
    return Release(runtime, pointer, Space::kPinned, cudaErrorInvalidValue);
  });
}

cudaError_t cudaHostRegister(void* pointer, size_t size, unsigned) {
  return Call("cudaHostRegister", CallKind::kDevice, [&](Runtime& runtime) {
    if (pointer == nullptr || size == 0) return cudaErrorInvalidValue;
    if (runtime.memory.Overlaps(pointer, size)) return cudaErrorHostMemoryAlreadyRegistered;
    runtime.memory.Register(runtime.device(), pointer, size);
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* pointer) {
  return Call("cudaHostUnregister", CallKind::kRelease, [&](Runtime& runtime) {
    return Release(runtime, pointer, Space::kRegistered, cudaErrorHostMemoryNotRegistered);
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return Call("cudaHostGetDevicePointer", CallKind::kDevice, [&](Runtime& runtime) {
    const Region* const region = runtime.memory.Find(host);
    const bool pinned = region != nullptr &&
                        (region->space == Space::kPinned || region->space == Space::kRegistered);
    if (!pinned || flags != 0) return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return Call("cudaPointerGetAttributes", CallKind::kDevice, [&](Runtime& runtime) {
    const Region* const region = runtime.memory.Find(pointer);
    auto* const address = const_cast<void*>(pointer);
    if (region == nullptr) {
      *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
    } else if (region->space == Space::kDevice || region->space == Space::kMapped) {
      *attributes = {cudaMemoryTypeDevice, region->device, address, nullptr};
    } else {
      *attributes = {cudaMemoryTypeHost, region->device, address, address};
    }
    return cudaSuccess;
  });
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* pointer) {
  return Call("cudaIpcGetMemHandle", CallKind::kDevice, [&](Runtime& runtime) {
    const Region* const region = runtime.memory.Find(pointer);
    if (region == nullptr || region->space != Space::kDevice) return cudaErrorInvalidValue;
    Handle content{};
    std::memcpy(content.magic, kMagic, sizeof kMagic);
    content.memory = runtime.memory.Export(*region);
    std::memcpy(handle, &content, sizeof content);
    return cudaSuccess;
  });
}

cudaError_t cudaIpcOpenMemHandle(void** pointer, cudaIpcMemHandle_t handle, unsigned flags) {
  return Call("cudaIpcOpenMemHandle", CallKind::kDevice, [&](Runtime& runtime) {
    *pointer = nullptr;
    if (flags != cudaIpcMemLazyEnablePeerAccess) return cudaErrorInvalidValue;
    const auto content = std::bit_cast<Handle>(handle);
    if (std::memcmp(content.magic, kMagic, sizeof kMagic) != 0) {
      return cudaErrorInvalidResourceHandle;
    }
    const auto& devices = runtime.options.devices;
    const auto device = static_cast<size_t>(content.memory.device);
    if (device >= devices.size() || content.memory.bytes == 0 ||
        content.memory.bytes > devices[device].memory) {
      return cudaErrorMapBufferObjectFailed;
    }
    const Region* const opened = runtime.memory.Map(content.memory, runtime.device());
    if (opened == nullptr) return cudaErrorMapBufferObjectFailed;
    *pointer = opened->base;
    return cudaSuccess;
  });
}

cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  return Call("cudaIpcCloseMemHandle", CallKind::kRelease, [&](Runtime& runtime) {
    Region* const region = runtime.memory.Find(pointer);
    if (region != nullptr && region->space == Space::kMapped && region->base == pointer &&
        region->references > 1) {
      --region->references;
      return cudaSuccess;
    }
    return Release(runtime, pointer, Space::kMapped, cudaErrorInvalidValue);
  });
}
