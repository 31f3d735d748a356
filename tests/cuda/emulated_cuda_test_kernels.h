// Launches of kernels that try the emulated device. Each is queued in the stream; pointers are to
// device or pinned memory.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_CUDA_TEST_KERNELS_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_CUDA_TEST_KERNELS_H_

#include "cuda_runtime.h"

namespace gradclip {

// out[block] = the sum of the block's run of `in`, by shuffles and shared memory; *finished counts
// blocks, and the last of them puts the sum of all into *total.
cudaError_t LaunchSum(dim3 grid, dim3 block, cudaStream_t stream, const float* in, size_t count,
                      double* out, double* total, unsigned* finished);
// Adds `by` to each of `count` elements.
cudaError_t LaunchAdd(cudaStream_t stream, unsigned* values, unsigned count, unsigned by);
// Per thread of a block of 64: results of warp operations, 16 words each. Lane 3 returns early.
inline constexpr unsigned kWarpWords = 16;
cudaError_t LaunchWarp(cudaStream_t stream, unsigned* out);
// Per thread its linear index, by x, y and z of block and grid.
cudaError_t LaunchIndex(dim3 grid, dim3 block, cudaStream_t stream, unsigned* out);
// Stores one word at values[index]; `checked` by __stcs.
cudaError_t LaunchStore(cudaStream_t stream, unsigned* values, long index, bool checked);
// A pointer that the launch cannot see, for it is within a struct.
struct Hidden {
  const unsigned* pointer;
};
cudaError_t LaunchReadHidden(cudaStream_t stream, Hidden hidden, unsigned* out);
// One thread waits for others that never come.
enum class Hang {
  kMaskOfAnother,
  kMaskWithoutItself,
  kMissingLanes,
  kDifferentBarriers,
  kDifferentOperations
};
cudaError_t LaunchHang(cudaStream_t stream, unsigned* out, Hang hang);
// Threads return before a barrier that the others reach.
cudaError_t LaunchEarlyExit(cudaStream_t stream, unsigned* out);
// Reads a neighbour's shared value without the barrier that this needs.
cudaError_t LaunchWithoutBarrier(cudaStream_t stream, unsigned* out);
// Stores beyond an array of the block's shared memory.
cudaError_t LaunchSharedOverrun(cudaStream_t stream, unsigned* out, int index);
// Divides a subnormal, for the floating-point environment.
cudaError_t LaunchSubnormal(cudaStream_t stream, float* value);
// Atomic operations of every kind, by all threads of 4 x 64.
cudaError_t LaunchAtomics(cudaStream_t stream, unsigned* words, unsigned long long* wide,
                          double* sum);

const void* SumKernel();

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_CUDA_TEST_KERNELS_H_
