// As CUDA's: the runtime's functions without the device language.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_API_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_API_H_

#include "runtime_api.h"

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_RUNTIME_API_H_
