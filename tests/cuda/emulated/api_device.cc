// Errors, versions and devices.
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda.h"
#include "runtime.h"
#include "runtime_api.h"

namespace gradclip::emulated_cuda {
namespace {

bool Exists(const Runtime& runtime, int device) {
  return device >= 0 && static_cast<size_t>(device) < runtime.devices.size();
}

CUuuid Uuid(int device) {
  CUuuid uuid{};
  std::memcpy(uuid.bytes, "emulated device", 15);
  uuid.bytes[15] = static_cast<char>(device);
  return uuid;
}

int PciBus(int device) {
  return 16 * (device + 1);
}

std::string PciBusId(int device) {
  char text[32];
  std::snprintf(text, sizeof text, "0000:%02X:00.0", static_cast<unsigned>(PciBus(device)) & 0xffu);
  return text;
}

CUresult GetAddressRange(CUdeviceptr* base, size_t* size, CUdeviceptr pointer) {
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  const cudaError_t error = Call("cuMemGetAddressRange", CallKind::kDevice, [&](Runtime& runtime) {
    const Region* const region = runtime.memory.Find(reinterpret_cast<void*>(pointer));
    if (region == nullptr) return cudaSuccess;
    if (base != nullptr) *base = reinterpret_cast<CUdeviceptr>(region->base);
    if (size != nullptr) *size = region->bytes;
    result = CUDA_SUCCESS;
    return cudaSuccess;
  });
  return error == cudaSuccess ? result : static_cast<CUresult>(error);
}

CUresult GetUuid(CUuuid* uuid, CUdevice device) {
  CUresult result = CUDA_ERROR_INVALID_DEVICE;
  const cudaError_t error = Call("cuDeviceGetUuid", CallKind::kQuery, [&](Runtime& runtime) {
    if (!Exists(runtime, device)) return cudaSuccess;
    *uuid = Uuid(device);
    result = CUDA_SUCCESS;
    return cudaSuccess;
  });
  return error == cudaSuccess ? result : static_cast<CUresult>(error);
}

cudaError_t FindEntryPoint(const char* symbol, void** function,
                           cudaDriverEntryPointQueryResult* result) {
  const std::string name = symbol;
  *function = nullptr;
  if (name == "cuMemGetAddressRange" || name == "cuMemGetAddressRange_v2") {
    *function = reinterpret_cast<void*>(&GetAddressRange);
  } else if (name == "cuDeviceGetUuid" || name == "cuDeviceGetUuid_v2") {
    *function = reinterpret_cast<void*>(&GetUuid);
  }
  const bool found = *function != nullptr;
  if (result != nullptr) {
    *result = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  }
  return found ? cudaSuccess : cudaErrorSymbolNotFound;
}

cudaDeviceProp Properties(const Device& device, int index) {
  cudaDeviceProp properties{};
  std::snprintf(properties.name, sizeof properties.name, "%s", device.name.c_str());
  properties.uuid = Uuid(index);
  properties.totalGlobalMem = device.memory;
  properties.sharedMemPerBlock = 48 << 10;
  properties.regsPerBlock = 1 << 16;
  properties.warpSize = 32;
  properties.maxThreadsPerBlock = 1024;
  properties.maxThreadsDim[0] = properties.maxThreadsDim[1] = 1024;
  properties.maxThreadsDim[2] = 64;
  properties.maxGridSize[0] = 0x7fffffff;
  properties.maxGridSize[1] = properties.maxGridSize[2] = 65535;
  properties.totalConstMem = 64 << 10;
  properties.major = device.major;
  properties.minor = device.minor;
  properties.multiProcessorCount = device.multiprocessors;
  properties.canMapHostMemory = 1;
  properties.concurrentKernels = 1;
  properties.ECCEnabled = 1;
  properties.pciBusID = PciBus(index);
  properties.asyncEngineCount = 2;
  properties.unifiedAddressing = 1;
  properties.memoryBusWidth = 5120;
  properties.l2CacheSize = device.l2_cache_bytes;
  properties.maxThreadsPerMultiProcessor = 2048;
  properties.sharedMemPerMultiprocessor = 228 << 10;
  properties.managedMemory = 1;
  properties.canUseHostPointerForRegisteredMem = 1;
  properties.maxBlocksPerMultiProcessor = 32;
  properties.hostRegisterSupported = 1;
  properties.hostRegisterReadOnlySupported = 1;
  return properties;
}

cudaError_t Attribute(const cudaDeviceProp& properties, cudaDeviceAttr attribute, int* value) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrTotalConstantMemory:
      *value = static_cast<int>(properties.totalConstMem);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = properties.regsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrEccEnabled:
      *value = properties.ECCEnabled;
      return cudaSuccess;
    case cudaDevAttrPciBusId:
      *value = properties.pciBusID;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      return cudaSuccess;
    case cudaDevAttrAsyncEngineCount:
      *value = properties.asyncEngineCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = properties.maxBlocksPerMultiProcessor;
      return cudaSuccess;
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrHostRegisterReadOnlySupported:
    case cudaDevAttrIpcEventSupport:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrIntegrated:
    case cudaDevAttrComputeMode:
    case cudaDevAttrPciDeviceId:
    case cudaDevAttrPciDomainId:
    case cudaDevAttrPageableMemoryAccess:
    case cudaDevAttrPageableMemoryAccessUsesHostPageTables:
      *value = 0;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace gradclip::emulated_cuda

using namespace gradclip::emulated_cuda;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMULATED_CUDA_NAME(name, number) \
  case name:                             \
    return #name;
    EMULATED_CUDA_ERRORS(EMULATED_CUDA_NAME)
#undef EMULATED_CUDA_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(RuntimeMutex());
  const Runtime& runtime = TheRuntime();
  ThreadState& thread = ThisThread();
  const auto device = static_cast<size_t>(thread.device);
  const cudaError_t sticky =
      device < runtime.devices.size() ? runtime.devices[device].sticky : cudaSuccess;
  const cudaError_t last = thread.last_error;
  thread.last_error = sticky;
  return last != cudaSuccess ? last : sticky;
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(RuntimeMutex());
  const Runtime& runtime = TheRuntime();
  const ThreadState& thread = ThisThread();
  const auto device = static_cast<size_t>(thread.device);
  if (thread.last_error != cudaSuccess || device >= runtime.devices.size())
    return thread.last_error;
  return runtime.devices[device].sticky;
}

cudaError_t cudaDriverGetVersion(int* version) {
  return Call("cudaDriverGetVersion", CallKind::kVersion, [&](Runtime& runtime) {
    *version = runtime.options.driver_version;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return Call("cudaRuntimeGetVersion", CallKind::kVersion, [&](Runtime&) {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return Call("cudaGetDriverEntryPoint", CallKind::kQuery,
              [&](Runtime&) { return FindEntryPoint(symbol, function, result); });
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return Call("cudaGetDriverEntryPointByVersion", CallKind::kQuery,
              [&](Runtime&) { return FindEntryPoint(symbol, function, result); });
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return Call("cudaGetDeviceCount", CallKind::kQuery, [&](Runtime& runtime) {
    *count = static_cast<int>(runtime.devices.size());
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Call("cudaGetDeviceProperties", CallKind::kQuery, [&](Runtime& runtime) {
    if (!Exists(runtime, device)) return cudaErrorInvalidDevice;
    *properties = Properties(runtime.options.devices[static_cast<size_t>(device)], device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Call("cudaDeviceGetAttribute", CallKind::kQuery, [&](Runtime& runtime) {
    if (!Exists(runtime, device)) return cudaErrorInvalidDevice;
    return Attribute(Properties(runtime.options.devices[static_cast<size_t>(device)], device),
                     attribute, value);
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return Call("cudaDeviceGetPCIBusId", CallKind::kQuery, [&](Runtime& runtime) {
    if (!Exists(runtime, device)) return cudaErrorInvalidDevice;
    const std::string text = PciBusId(device);
    if (length <= static_cast<int>(text.size())) return cudaErrorInvalidValue;
    std::memcpy(id, text.c_str(), text.size() + 1);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  return Call("cudaDeviceGetByPCIBusId", CallKind::kQuery, [&](Runtime& runtime) {
    for (size_t i = 0; i < runtime.devices.size(); ++i) {
      if (PciBusId(static_cast<int>(i)) != id) continue;
      *device = static_cast<int>(i);
      return cudaSuccess;
    }
    return cudaErrorInvalidDevice;
  });
}

cudaError_t cudaSetDevice(int device) {
  return Call("cudaSetDevice", CallKind::kQuery, [&](Runtime& runtime) {
    if (!Exists(runtime, device)) return cudaErrorInvalidDevice;
    ThisThread().device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return Call("cudaGetDevice", CallKind::kQuery, [&](Runtime&) {
    *device = ThisThread().device;
    return cudaSuccess;
  });
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return Call("cudaInitDevice", CallKind::kQuery, [&](Runtime& runtime) {
    return Exists(runtime, device) ? cudaSuccess : cudaErrorInvalidDevice;
  });
}

cudaError_t cudaSetDeviceFlags(unsigned) {
  return Call("cudaSetDeviceFlags", CallKind::kQuery, [&](Runtime&) { return cudaSuccess; });
}

cudaError_t cudaDeviceSynchronize() {
  return Call("cudaDeviceSynchronize", CallKind::kDevice, [&](Runtime& runtime) {
    runtime.RunDevice(runtime.device());
    return runtime.Waited(runtime.device());
  });
}
