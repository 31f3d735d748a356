// The types of CUDA 13's runtime that are in use, with its names, numbers and order of members.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_TYPES_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_TYPES_H_

#include <cstddef>

#include "vector_types.h"

#define CUDART_VERSION 13000
#define CUDARTAPI
#define CUDART_CB

// EMULATED_CUDA_ERRORS(X): X(name, number) for each.
#define EMULATED_CUDA_ERRORS(X)                \
  X(cudaSuccess, 0)                            \
  X(cudaErrorInvalidValue, 1)                  \
  X(cudaErrorMemoryAllocation, 2)              \
  X(cudaErrorInitializationError, 3)           \
  X(cudaErrorCudartUnloading, 4)               \
  X(cudaErrorInvalidConfiguration, 9)          \
  X(cudaErrorInvalidSymbol, 13)                \
  X(cudaErrorInvalidHostPointer, 16)           \
  X(cudaErrorInvalidDevicePointer, 17)         \
  X(cudaErrorInvalidMemcpyDirection, 21)       \
  X(cudaErrorStubLibrary, 34)                  \
  X(cudaErrorInsufficientDriver, 35)           \
  X(cudaErrorCallRequiresNewerDriver, 36)      \
  X(cudaErrorDevicesUnavailable, 46)           \
  X(cudaErrorIncompatibleDriverContext, 49)    \
  X(cudaErrorInvalidDeviceFunction, 98)        \
  X(cudaErrorNoDevice, 100)                    \
  X(cudaErrorInvalidDevice, 101)               \
  X(cudaErrorDeviceNotLicensed, 102)           \
  X(cudaErrorStartupFailure, 127)              \
  X(cudaErrorInvalidKernelImage, 200)          \
  X(cudaErrorDeviceUninitialized, 201)         \
  X(cudaErrorMapBufferObjectFailed, 205)       \
  X(cudaErrorUnmapBufferObjectFailed, 206)     \
  X(cudaErrorAlreadyMapped, 208)               \
  X(cudaErrorNoKernelImageForDevice, 209)      \
  X(cudaErrorNotMapped, 211)                   \
  X(cudaErrorECCUncorrectable, 214)            \
  X(cudaErrorUnsupportedLimit, 215)            \
  X(cudaErrorDeviceAlreadyInUse, 216)          \
  X(cudaErrorPeerAccessUnsupported, 217)       \
  X(cudaErrorInvalidPtx, 218)                  \
  X(cudaErrorNvlinkUncorrectable, 220)         \
  X(cudaErrorUnsupportedPtxVersion, 222)       \
  X(cudaErrorContained, 226)                   \
  X(cudaErrorSharedObjectInitFailed, 303)      \
  X(cudaErrorOperatingSystem, 304)             \
  X(cudaErrorInvalidResourceHandle, 400)       \
  X(cudaErrorIllegalState, 401)                \
  X(cudaErrorSymbolNotFound, 500)              \
  X(cudaErrorNotReady, 600)                    \
  X(cudaErrorIllegalAddress, 700)              \
  X(cudaErrorLaunchOutOfResources, 701)        \
  X(cudaErrorLaunchTimeout, 702)               \
  X(cudaErrorPeerAccessAlreadyEnabled, 704)    \
  X(cudaErrorPeerAccessNotEnabled, 705)        \
  X(cudaErrorContextIsDestroyed, 709)          \
  X(cudaErrorAssert, 710)                      \
  X(cudaErrorTooManyPeers, 711)                \
  X(cudaErrorHostMemoryAlreadyRegistered, 712) \
  X(cudaErrorHostMemoryNotRegistered, 713)     \
  X(cudaErrorHardwareStackError, 714)          \
  X(cudaErrorIllegalInstruction, 715)          \
  X(cudaErrorMisalignedAddress, 716)           \
  X(cudaErrorInvalidAddressSpace, 717)         \
  X(cudaErrorInvalidPc, 718)                   \
  X(cudaErrorLaunchFailure, 719)               \
  X(cudaErrorTensorMemoryLeak, 721)            \
  X(cudaErrorNotPermitted, 800)                \
  X(cudaErrorNotSupported, 801)                \
  X(cudaErrorSystemNotReady, 802)              \
  X(cudaErrorSystemDriverMismatch, 803)        \
  X(cudaErrorCompatNotSupportedOnDevice, 804)  \
  X(cudaErrorMpsConnectionFailed, 805)         \
  X(cudaErrorMpsServerNotReady, 807)           \
  X(cudaErrorTimeout, 909)                     \
  X(cudaErrorExternalDevice, 911)              \
  X(cudaErrorFunctionNotLoaded, 913)           \
  X(cudaErrorUnknown, 999)

enum cudaError {
#define EMULATED_CUDA_ENUMERATOR(name, number) name = number,
  EMULATED_CUDA_ERRORS(EMULATED_CUDA_ENUMERATOR)
#undef EMULATED_CUDA_ENUMERATOR
};
using cudaError_t = cudaError;

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
struct CUuuid_st {
  char bytes[16];
};
using CUuuid = CUuuid_st;
using cudaUUID_t = CUuuid_st;
struct cudaIpcMemHandle_st {
  char reserved[64];
};
using cudaIpcMemHandle_t = cudaIpcMemHandle_st;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};

enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};

#define cudaHostAllocDefault 0x00
#define cudaHostAllocPortable 0x01
#define cudaHostAllocMapped 0x02
#define cudaHostAllocWriteCombined 0x04
#define cudaHostRegisterDefault 0x00
#define cudaHostRegisterPortable 0x01
#define cudaHostRegisterMapped 0x02
#define cudaHostRegisterIoMemory 0x04
#define cudaHostRegisterReadOnly 0x08
#define cudaStreamDefault 0x00
#define cudaStreamNonBlocking 0x01
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(0x1))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(0x2))
#define cudaEventDefault 0x00
#define cudaEventBlockingSync 0x01
#define cudaEventDisableTiming 0x02
#define cudaEventInterprocess 0x04
#define cudaEventWaitDefault 0x00
#define cudaEventRecordDefault 0x00
#define cudaIpcMemLazyEnablePeerAccess 0x01
#define cudaEnableDefault 0x0
#define cudaDeviceScheduleAuto 0x00
#define cudaDeviceScheduleSpin 0x01
#define cudaDeviceScheduleYield 0x02
#define cudaDeviceScheduleBlockingSync 0x04
#define cudaOccupancyDefault 0x00

enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1,
  cudaDriverEntryPointVersionNotSufficent = 2,
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrTotalConstantMemory = 9,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMaxRegistersPerBlock = 12,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrIntegrated = 18,
  cudaDevAttrCanMapHostMemory = 19,
  cudaDevAttrComputeMode = 20,
  cudaDevAttrConcurrentKernels = 31,
  cudaDevAttrEccEnabled = 32,
  cudaDevAttrPciBusId = 33,
  cudaDevAttrPciDeviceId = 34,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrAsyncEngineCount = 40,
  cudaDevAttrUnifiedAddressing = 41,
  cudaDevAttrPciDomainId = 50,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrManagedMemory = 83,
  cudaDevAttrPageableMemoryAccess = 88,
  cudaDevAttrCanUseHostPointerForRegisteredMem = 91,
  cudaDevAttrHostRegisterSupported = 99,
  cudaDevAttrPageableMemoryAccessUsesHostPageTables = 100,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrHostRegisterReadOnlySupported = 113,
  cudaDevAttrIpcEventSupport = 125,
};

// The members in use; the rest of CUDA's are left out.
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  size_t totalGlobalMem;
  size_t sharedMemPerBlock;
  int regsPerBlock;
  int warpSize;
  int maxThreadsPerBlock;
  int maxThreadsDim[3];
  int maxGridSize[3];
  size_t totalConstMem;
  int major;
  int minor;
  int multiProcessorCount;
  int integrated;
  int canMapHostMemory;
  int concurrentKernels;
  int ECCEnabled;
  int pciBusID;
  int pciDeviceID;
  int pciDomainID;
  int asyncEngineCount;
  int unifiedAddressing;
  int memoryBusWidth;
  int l2CacheSize;
  int maxThreadsPerMultiProcessor;
  size_t sharedMemPerMultiprocessor;
  int managedMemory;
  int pageableMemoryAccess;
  int canUseHostPointerForRegisteredMem;
  int maxBlocksPerMultiProcessor;
  int hostRegisterSupported;
  int hostRegisterReadOnlySupported;
};

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void* devicePointer;
  void* hostPointer;
};

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  size_t constSizeBytes;
  size_t localSizeBytes;
  int maxThreadsPerBlock;
  int numRegs;
  int ptxVersion;
  int binaryVersion;
  int maxDynamicSharedSizeBytes;
};

enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeCooperative = 2,
};
union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_RUNTIME_TYPES_H_
