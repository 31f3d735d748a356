#include "server/backend/cuda/cuda_memory.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>

#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

// cuMemGetAddressRange: which allocation an address lies in. It is the driver's, which a machine
// without GPU lacks, and so is asked for by name.
struct Allocation {
  CUdeviceptr base = 0;
  size_t bytes = 0;
};
void FindAllocation(const void* address, CudaCalls& calls, Allocation& allocation) {
  using GetAddressRange = CUresult(CUDAAPI*)(CUdeviceptr*, size_t*, CUdeviceptr);
  constexpr unsigned kSinceCuda = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (!calls.Ok("cudaGetDriverEntryPointByVersion",
                cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, kSinceCuda,
                                                 cudaEnableDefault, &found))) {
    return;
  }
  if (found != cudaDriverEntryPointSuccess) {
    calls.Ok("cudaGetDriverEntryPointByVersion", cudaErrorSymbolNotFound);
    return;
  }
  const CUresult result = reinterpret_cast<GetAddressRange>(function)(
      &allocation.base, &allocation.bytes, reinterpret_cast<CUdeviceptr>(address));
  // The driver's numbers are the runtime's.
  calls.Ok("cuMemGetAddressRange", static_cast<cudaError_t>(result));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> CudaMemory::Open(CudaInPlace& in_place,
                                                               const ExportedMemory& memory) {
  CudaDevice& device = in_place.device();
  if (absl::Status current = device.MakeCurrent(); !current.ok()) return current;
  cudaIpcMemHandle_t handle;
  static_assert(sizeof(handle) == sizeof(memory.allocation));
  std::memcpy(&handle, memory.allocation.data(), sizeof(handle));
  void* allocation = nullptr;
  CudaCalls calls;
  calls.Ok("cudaIpcOpenMemHandle",
           cudaIpcOpenMemHandle(&allocation, handle, cudaIpcMemLazyEnablePeerAccess));
  if (absl::Status opened = device.CheckGiven(calls); !opened.ok()) return opened;
  std::unique_ptr<CudaMemory> open(new CudaMemory(in_place, allocation));
  if (absl::Status placed = open->Place(memory); !placed.ok()) return placed;
  return open;
}

CudaMemory::~CudaMemory() {
  CudaDevice& device = in_place_.device();
  if (!device.MakeCurrent().ok()) return;  // it goes with the process
  CudaCalls calls;
  calls.Ok("cudaIpcCloseMemHandle", cudaIpcCloseMemHandle(allocation_));
  (void)device.CheckGiven(calls);
}

absl::Status CudaMemory::Place(const ExportedMemory& memory) {
  CudaDevice& device = in_place_.device();
  Allocation allocation;
  cudaPointerAttributes attributes = {};
  CudaCalls calls;
  if (calls.Ok("cudaPointerGetAttributes", cudaPointerGetAttributes(&attributes, allocation_))) {
    FindAllocation(allocation_, calls, allocation);
  }
  if (absl::Status found = device.CheckGiven(calls); !found.ok()) return found;
  // A device opens memory of another that it can reach, too.
  if (attributes.device != device.number()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the handle is of memory of another GPU than the UUID, which is %s's", device.name()));
  }
  // A handle of a small allocation may open the whole block that it lies in.
  const uint64_t begin = reinterpret_cast<uint64_t>(allocation_) - allocation.base;
  const uint64_t bytes = begin > allocation.bytes ? 0 : allocation.bytes - begin;
  if (memory.length == 0 || memory.length > bytes || memory.offset > bytes - memory.length) {
    return absl::InvalidArgumentError(
        absl::StrFormat("memory of %d bytes from byte %d on is not in its allocation, which has "
                        "%d; the length must be at least 1",
                        memory.length, memory.offset, bytes));
  }
  address_ = reinterpret_cast<uint64_t>(allocation_) + memory.offset;
  return absl::OkStatus();
}

}  // namespace gradclip
