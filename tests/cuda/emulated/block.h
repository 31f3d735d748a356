// Runs the blocks of a launch, each thread a fiber. Not thread-safe: one launch at a time.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_BLOCK_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_BLOCK_H_

#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include "runtime_types.h"

namespace gradclip::emulated_cuda {

struct KernelResult {
  cudaError_t error = cudaSuccess;
  // What went wrong, and in which thread of which block.
  std::string message;
};

// Runs `body` once per thread. With `random`, blocks and threads take turns in an order drawn from
// it; without, in ascending order.
KernelResult RunGrid(dim3 grid, dim3 block, const std::function<void()>& body,
                     std::mt19937_64* random);

// Ends the running launch with this error. REQUIRES: called by a kernel; otherwise aborts.
[[noreturn]] void FailKernel(cudaError_t error, const std::string& message);

}  // namespace gradclip::emulated_cuda

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_BLOCK_H_
