#include <cmath>

#include "tests/cuda/emulated_cuda_test_kernels.h"

namespace gradclip {
namespace {

constexpr unsigned kAll = 0xffffffffu;
__constant__ const double kOnes[2] = {1.0, 1.0};

template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kAll, value, offset);
  return value;
}

template <typename T>
__device__ T BlockSum(T value) {
  __shared__ T partial[32];
  const unsigned thread = threadIdx.x + blockDim.x * threadIdx.y;
  value = WarpSum(value);
  if (thread % 32 == 0) partial[thread / 32] = value;
  __syncthreads();
  const unsigned warps = blockDim.x * blockDim.y / 32;
  value = thread < warps ? partial[thread] : T{0};
  if (thread < 32) value = WarpSum(value);
  __syncthreads();
  return value;
}

__global__ void __launch_bounds__(1024) Sum(const float* __restrict__ in, size_t count, double* out,
                                            double* total, unsigned* finished) {
  __shared__ bool last;
  const size_t threads = size_t{gridDim.x} * blockDim.x;
  double sum = 0;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += threads) {
    sum = __dadd_rn(sum, __dmul_rn(kOnes[i % 2], __ldg(in + i)));
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) {
    __stcg(out + blockIdx.x, sum);
    __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  double all = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) all += __ldcg(out + i);
  all = BlockSum(all);
  if (threadIdx.x == 0) *total = all;
}

__global__ void Add(unsigned* values, unsigned count, unsigned by) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  values[i] += by;
}

__global__ void Warp(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x == 3) return;
  const unsigned others = threadIdx.x < 32 ? kAll & ~8u : kAll;
  unsigned* const row = out + threadIdx.x * kWarpWords;
  row[0] = __ballot_sync(others, lane % 2);
  row[1] = static_cast<unsigned>(__any_sync(others, lane == 31));
  row[2] = static_cast<unsigned>(__all_sync(others, lane < 31));
  row[3] = __shfl_sync(others, threadIdx.x, 5);
  row[4] = __shfl_xor_sync(others, threadIdx.x, 1);
  row[5] = __shfl_up_sync(others, threadIdx.x, 2);
  row[6] = __shfl_down_sync(others, threadIdx.x, 2, 16);
  row[7] = __reduce_add_sync(others, lane);
  row[8] = __reduce_min_sync(others, threadIdx.x);
  row[9] = __reduce_max_sync(others, threadIdx.x);
  row[10] = __activemask();
  // The halves of a warp on their own.
  const unsigned half = lane < 16 ? others & 0xffffu : others & 0xffff0000u;
  row[11] = __ballot_sync(half, 1);
  // A mask that names the lane that has returned: it counts as gone.
  row[12] = __ballot_sync(kAll, 1);
  row[13] = static_cast<unsigned>(__shfl_sync(kAll, static_cast<long long>(lane) << 40, 7) >> 40);
  row[14] = static_cast<unsigned>(__shfl_down_sync(kAll, 0.5 + lane, 1));
  __syncwarp();
  row[15] = __shfl_sync(others, threadIdx.x, 9, 8);
}

__global__ void Index(unsigned* out) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * threads + thread] = block * threads + thread;
}

__global__ void Store(unsigned* values, long index, bool checked) {
  if (checked) {
    __stcs(values + index, 7u);
  } else {
    values[index] = 7;
  }
}

__global__ void ReadHidden(Hidden hidden, unsigned* out) {
  *out = __ldg(hidden.pointer);
}

__global__ void HangForever(unsigned* out, Hang hang) {
  const unsigned lane = threadIdx.x % 32;
  switch (hang) {
    case Hang::kMaskOfAnother:
      if (lane == 0) out[0] = __ballot_sync(3u, 1);
      __syncthreads();
      break;
    case Hang::kMaskWithoutItself:
      out[0] = __ballot_sync(2u, 1);
      break;
    case Hang::kMissingLanes:
      if (threadIdx.x >= 32) out[0] = __ballot_sync(kAll, 1);
      break;
    case Hang::kDifferentBarriers:
      if (lane == 1) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      break;
    case Hang::kDifferentOperations:
      out[0] = lane == 0 ? __shfl_sync(kAll, lane, 0) : __shfl_xor_sync(kAll, lane, 1);
      break;
  }
}

__global__ void EarlyExit(unsigned* out) {
  __shared__ unsigned arrived;
  if (threadIdx.x == 0) arrived = 0;
  __syncthreads();
  if (threadIdx.x % 3 == 1) return;
  atomicAdd(&arrived, 1u);
  __syncthreads();
  if (threadIdx.x == 0) out[0] = arrived;
  out[1 + threadIdx.x] = static_cast<unsigned>(__syncthreads_count(threadIdx.x < 6));
}

__global__ void WithoutBarrier(unsigned* out) {
  __shared__ unsigned values[64];
  values[threadIdx.x] = 1000 * (blockIdx.x + 1) + threadIdx.x;
  out[blockIdx.x * 64 + threadIdx.x] = values[(threadIdx.x + 63) % 64];
}

__global__ void SharedOverrun(unsigned* out, int index) {
  __shared__ unsigned values[8];
  values[index] = 1;
  out[0] = values[0];
}

__global__ void Subnormal(float* value) {
  *value = *value / 2;
}

__global__ void Atomics(unsigned* words, unsigned long long* wide, double* sum) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(words, i);
  atomicMin(words + 1, i);
  atomicMax(words + 2, i);
  atomicOr(words + 3, 1u << i % 32);
  if (i == 77) atomicExch(words + 4, 77u);
  atomicCAS(words + 5, i, i + 1);
  atomicAdd(wide, static_cast<unsigned long long>(i) << 32);
  atomicMin(wide + 1, i + (1ull << 40));
  atomicMax(wide + 2, i + (1ull << 40));
  atomicAdd(sum, 0.25);
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(dim3 grid, dim3 block, cudaStream_t stream, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

cudaError_t LaunchSum(dim3 grid, dim3 block, cudaStream_t stream, const float* in, size_t count,
                      double* out, double* total, unsigned* finished) {
  return Launch(grid, block, stream, Sum, in, count, out, total, finished);
}
cudaError_t LaunchAdd(cudaStream_t stream, unsigned* values, unsigned count, unsigned by) {
  return Launch((count + 63) / 64, 64, stream, Add, values, count, by);
}
cudaError_t LaunchWarp(cudaStream_t stream, unsigned* out) {
  return Launch(1, 64, stream, Warp, out);
}
cudaError_t LaunchIndex(dim3 grid, dim3 block, cudaStream_t stream, unsigned* out) {
  return Launch(grid, block, stream, Index, out);
}
cudaError_t LaunchStore(cudaStream_t stream, unsigned* values, long index, bool checked) {
  return Launch(1, 1, stream, Store, values, index, checked);
}
cudaError_t LaunchReadHidden(cudaStream_t stream, Hidden hidden, unsigned* out) {
  return Launch(1, 1, stream, ReadHidden, hidden, out);
}
cudaError_t LaunchHang(cudaStream_t stream, unsigned* out, Hang hang) {
  return Launch(1, hang == Hang::kMissingLanes ? 40 : 32, stream, HangForever, out, hang);
}
cudaError_t LaunchEarlyExit(cudaStream_t stream, unsigned* out) {
  return Launch(1, 96, stream, EarlyExit, out);
}
cudaError_t LaunchWithoutBarrier(cudaStream_t stream, unsigned* out) {
  return Launch(4, 64, stream, WithoutBarrier, out);
}
cudaError_t LaunchSharedOverrun(cudaStream_t stream, unsigned* out, int index) {
  return Launch(1, 1, stream, SharedOverrun, out, index);
}
cudaError_t LaunchSubnormal(cudaStream_t stream, float* value) {
  return Launch(1, 1, stream, Subnormal, value);
}
cudaError_t LaunchAtomics(cudaStream_t stream, unsigned* words, unsigned long long* wide,
                          double* sum) {
  return Launch(4, 64, stream, Atomics, words, wide, sum);
}
const void* SumKernel() {
  return reinterpret_cast<const void*>(&Sum);
}

}  // namespace gradclip
