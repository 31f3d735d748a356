// Takes the place of CUDA's header of this name where kernels and host code are compiled for the
// emulated device. emulated_cuda.h says what that shows and what it cannot.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_H_

#include "device_language.h"
#include "runtime_api.h"

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_H_
