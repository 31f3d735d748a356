// What is in use of the driver's interface: types of the functions that
// cudaGetDriverEntryPointByVersion gives, which are cuMemGetAddressRange and cuDeviceGetUuid.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_H_

#include "runtime_types.h"

#define CUDA_VERSION 13000
#define CUDAAPI

enum CUresult {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_NOT_FOUND = 500,
};
using CUdeviceptr = unsigned long long;
using CUdevice = int;

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_H_
