// One warp measures or scales one block at a time, block after block. Nothing that is added up
// depends on the order in which warps come by: sums go into digits of fixed point, by integer
// atomics.
#include <algorithm>

#include "server/backend/cuda/elements.cuh"
#include "server/backend/cuda/kernels.h"
#include "server/backend/cuda/measure.cuh"

namespace gradclip {
namespace cuda {
namespace {

constexpr unsigned kWarps = 8;  // of a thread block
constexpr unsigned kThreads = kWarps * kWarpSize;
// Thread blocks for each multiprocessor: as many threads as any can hold at once.
constexpr unsigned kThreadBlocks = 8;

// CUDA's atomics take no uint64_t.
using Counter = unsigned long long;
static_assert(sizeof(Counter) == sizeof(uint64_t));
__device__ __forceinline__ Counter* Atomic(uint64_t* counter) {
  return reinterpret_cast<Counter*>(counter);
}

// A run's address, of which the compiler is told that it is none of shared or local memory: it then
// need not find out at every access.
__device__ __forceinline__ std::byte* Global(uint64_t address) {
  auto* const pointer = reinterpret_cast<std::byte*>(address);
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The run that has a block of this number. All lanes look for the same one.
__device__ __forceinline__ const DeviceRun* RunOf(const DeviceRuns& table, uint64_t block) {
  uint32_t low = 0;
  for (uint32_t high = table.count; high - low > 1;) {
    const uint32_t middle = low + (high - low) / 2;
    if (table.runs[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return &table.runs[low];
}

// Calls visit(run, elements, count, number) for each of the blocks that fall to this warp.
template <typename Visit>
__device__ __forceinline__ void ForEachBlock(const DeviceRuns& table, Visit visit) {
  const uint64_t warp = uint64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  for (uint64_t block = warp; block < table.blocks; block += uint64_t{gridDim.x} * kWarps) {
    const DeviceRun& run = *RunOf(table, block);
    const uint64_t first = (block - run.first_block) * kBlockElements;
    const uint64_t left = run.elements - first;
    const auto count = static_cast<unsigned>(left < kBlockElements ? left : kBlockElements);
    visit(run, Global(run.address) + first * ElementSize(run.dtype), count, block);
  }
}

template <NormKind kind>
__device__ __forceinline__ DeviceBlock MeasureBlockOf(DType dtype, const std::byte* elements,
                                                      unsigned count, unsigned lane,
                                                      bool counts_all) {
  switch (dtype) {
    case DType::kFloat32:
      return MeasureBlock<kind, DType::kFloat32>(elements, count, lane, counts_all);
    case DType::kFloat16:
      return MeasureBlock<kind, DType::kFloat16>(elements, count, lane, counts_all);
    case DType::kBFloat16:
      return MeasureBlock<kind, DType::kBFloat16>(elements, count, lane, counts_all);
    case DType::kFloat64:
      break;
  }
  return MeasureBlock<kind, DType::kFloat64>(elements, count, lane, counts_all);
}

__device__ __forceinline__ void Clear(DeviceTally& tally) {
  for (unsigned i = threadIdx.x; i < kFixedPointSlots; i += kThreads) tally.digits[i] = 0;
  if (threadIdx.x == 0) {
    tally.largest = tally.blocks = tally.nonfinite_sums = tally.nan_sums = tally.nonfinite = 0;
    tally.first_nonfinite = DeviceTally::kNone;
  }
}

template <NormKind kind>
__device__ __forceinline__ void AddBlock(DeviceTally& tally, const DeviceBlock& block,
                                         uint64_t number) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(block.sum)) & INT64_MAX;
  atomicAdd(Atomic(&tally.blocks), Counter{1});
  if (block.nonfinite != 0) {
    atomicAdd(Atomic(&tally.nonfinite), Counter{block.nonfinite});
    atomicMin(Atomic(&tally.first_nonfinite),
              Counter{number * kBlockElements + block.first_nonfinite});
  }
  if constexpr (kind == NormKind::kLargest) {
    atomicMax(Atomic(&tally.largest), Counter{bits});
    return;
  }
  const FixedPointTerm term =
      IsFinite(bits) ? SplitIntoDigits(bits, block.exponent) : FixedPointTerm{};
  if (!IsFinite(bits) || term.too_large) {
    atomicAdd(Atomic(&tally.nonfinite_sums), Counter{1});
    if (bits > 0x7ff0000000000000) atomicAdd(Atomic(&tally.nan_sums), Counter{1});
    return;
  }
  if (term.low != 0) atomicAdd(Atomic(&tally.digits[term.first]), Counter{term.low});
  if (term.middle != 0) atomicAdd(Atomic(&tally.digits[term.first + 1]), Counter{term.middle});
  if (term.high != 0) atomicAdd(Atomic(&tally.digits[term.first + 2]), Counter{term.high});
}

__device__ __forceinline__ void AddTally(DeviceTally& total, DeviceTally& part) {
  for (unsigned i = threadIdx.x; i < kFixedPointSlots; i += kThreads) {
    if (part.digits[i] != 0) atomicAdd(Atomic(&total.digits[i]), Counter{part.digits[i]});
  }
  if (threadIdx.x != 0) return;
  atomicMax(Atomic(&total.largest), Counter{part.largest});
  atomicAdd(Atomic(&total.blocks), Counter{part.blocks});
  if (part.nonfinite_sums != 0) {
    atomicAdd(Atomic(&total.nonfinite_sums), Counter{part.nonfinite_sums});
    atomicAdd(Atomic(&total.nan_sums), Counter{part.nan_sums});
  }
  if (part.nonfinite != 0) {
    atomicAdd(Atomic(&total.nonfinite), Counter{part.nonfinite});
    atomicMin(Atomic(&total.first_nonfinite), Counter{part.first_nonfinite});
  }
}

template <NormKind kind>
__global__ void __launch_bounds__(kThreads)
    Measure(DeviceRuns runs, DeviceTally* tally, DeviceBlock* found) {
  __shared__ DeviceTally part;  // of this thread block
  Clear(part);
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarpSize;
  ForEachBlock(
      runs, [&](const DeviceRun& run, const std::byte* elements, unsigned count, uint64_t number) {
        const DeviceBlock block =
            MeasureBlockOf<kind>(run.dtype, elements, count, lane, /*counts_all=*/found != nullptr);
        if (lane != 0) return;
        if (found != nullptr) found[number] = block;
        if (run.counted) AddBlock<kind>(part, block, number);
      });
  __syncthreads();
  AddTally(*tally, part);
}

// 16 bytes at a time where they are aligned.
template <DType dtype, typename Change>
__device__ __forceinline__ void ChangeBlock(std::byte* address, unsigned count, unsigned lane,
                                            Change change) {
  using Bits = BitsOf<dtype>;
  constexpr unsigned kInVector = sizeof(uint4) / sizeof(Bits);
  union Vector {
    uint4 vector;
    Bits elements[kInVector];
  };
  auto* elements = reinterpret_cast<Bits*>(address);
  const auto misaligned =
      static_cast<unsigned>(reinterpret_cast<uintptr_t>(address) % sizeof(uint4));
  unsigned head = misaligned == 0 ? 0 : (sizeof(uint4) - misaligned) / sizeof(Bits);
  if (head > count) head = count;
#pragma unroll 1
  for (unsigned i = lane; i < head; i += kWarpSize) elements[i] = change(elements[i]);
  auto* vectors = reinterpret_cast<uint4*>(elements + head);
  const unsigned whole = (count - head) / kInVector;
  constexpr unsigned kVectorsInFlight = 4;
  unsigned at = lane;
#pragma unroll 1  // more in flight would take registers that more warps have a better use for
  for (; at + (kVectorsInFlight - 1) * kWarpSize < whole; at += kVectorsInFlight * kWarpSize) {
    Vector batch[kVectorsInFlight];
#pragma unroll
    for (unsigned i = 0; i < kVectorsInFlight; ++i) {
      batch[i].vector = vectors[at + i * kWarpSize];
    }
#pragma unroll
    for (unsigned i = 0; i < kVectorsInFlight; ++i) {
#pragma unroll
      for (unsigned j = 0; j < kInVector; ++j) batch[i].elements[j] = change(batch[i].elements[j]);
      vectors[at + i * kWarpSize] = batch[i].vector;
    }
  }
#pragma unroll 1
  for (; at < whole; at += kWarpSize) {
    Vector one;
    one.vector = vectors[at];
#pragma unroll
    for (unsigned j = 0; j < kInVector; ++j) one.elements[j] = change(one.elements[j]);
    vectors[at] = one.vector;
  }
#pragma unroll 1
  for (unsigned i = head + whole * kInVector + lane; i < count; i += kWarpSize) {
    elements[i] = change(elements[i]);
  }
}

// Calls change(address, count) as ChangeBlock<dtype> for the blocks of the dtypes that are to be
// scaled.
template <typename Change>
__device__ __forceinline__ void ForEachBlockToScale(const DeviceRuns& runs, uint32_t dtypes,
                                                    Change change) {
  ForEachBlock(runs, [&](const DeviceRun& run, std::byte* elements, unsigned count, uint64_t) {
    if ((dtypes >> static_cast<unsigned>(run.dtype) & 1) == 0) return;
    switch (run.dtype) {
      case DType::kFloat32:
        return change.template operator()<DType::kFloat32>(elements, count);
      case DType::kFloat16:
        return change.template operator()<DType::kFloat16>(elements, count);
      case DType::kBFloat16:
        return change.template operator()<DType::kBFloat16>(elements, count);
      case DType::kFloat64:
        return change.template operator()<DType::kFloat64>(elements, count);
    }
  });
}

__global__ void __launch_bounds__(kThreads) Scale(DeviceRuns runs, ScaleFactor factor) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const float in_float = __double2float_rn(factor.coefficient);
  ForEachBlockToScale(runs, factor.dtypes, [&]<DType dtype>(std::byte* elements, unsigned count) {
    ChangeBlock<dtype>(elements, count, lane, [&](BitsOf<dtype> bits) {
      return Scaled<dtype>(bits, factor.coefficient, in_float);
    });
  });
}

// Coefficients beyond the normal range of float are rare: one element at a time.
__global__ void __launch_bounds__(kThreads) ScaleInDouble(DeviceRuns runs, ScaleFactor factor) {
  const unsigned lane = threadIdx.x % kWarpSize;
  ForEachBlockToScale(runs, factor.dtypes, [&]<DType dtype>(std::byte* address, unsigned count) {
    auto* elements = reinterpret_cast<BitsOf<dtype>*>(address);
    for (unsigned i = lane; i < count; i += kWarpSize) {
      elements[i] = ScaledInDouble<dtype>(elements[i], factor.coefficient);
    }
  });
}

__global__ void __launch_bounds__(kThreads) AssignZero(DeviceRuns runs, uint32_t dtypes) {
  const unsigned lane = threadIdx.x % kWarpSize;
  ForEachBlockToScale(runs, dtypes, [&]<DType dtype>(std::byte* elements, unsigned count) {
    ChangeBlock<dtype>(elements, count, lane, [](BitsOf<dtype>) { return BitsOf<dtype>{0}; });
  });
}

cudaLaunchConfig_t Configuration(cudaStream_t stream, int multiprocessors, uint64_t blocks) {
  const uint64_t most = static_cast<uint64_t>(multiprocessors) * kThreadBlocks;
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = static_cast<unsigned>(std::min((blocks + kWarps - 1) / kWarps, most));
  configuration.blockDim = kThreads;
  configuration.stream = stream;
  return configuration;
}

}  // namespace
}  // namespace cuda

DeviceTally EmptyTally() {
  DeviceTally tally = {};
  tally.first_nonfinite = DeviceTally::kNone;
  return tally;
}

cudaError_t LaunchMeasure(cudaStream_t stream, int multiprocessors, NormKind kind, DeviceRuns runs,
                          DeviceTally* tally, DeviceBlock* found) {
  if (runs.blocks == 0) return cudaSuccess;
  const cudaLaunchConfig_t configuration =
      cuda::Configuration(stream, multiprocessors, runs.blocks);
  switch (kind) {
    case NormKind::kMagnitudes:
      return cudaLaunchKernelEx(&configuration, cuda::Measure<NormKind::kMagnitudes>, runs, tally,
                                found);
    case NormKind::kSquares:
      return cudaLaunchKernelEx(&configuration, cuda::Measure<NormKind::kSquares>, runs, tally,
                                found);
    case NormKind::kLargest:
      break;
  }
  return cudaLaunchKernelEx(&configuration, cuda::Measure<NormKind::kLargest>, runs, tally, found);
}

cudaError_t LaunchScale(cudaStream_t stream, int multiprocessors, DeviceRuns runs,
                        const ScaleFactor& factor) {
  if (runs.blocks == 0 || factor.dtypes == 0) return cudaSuccess;
  const cudaLaunchConfig_t configuration =
      cuda::Configuration(stream, multiprocessors, runs.blocks);
  if (factor.assign_zero) {
    return cudaLaunchKernelEx(&configuration, cuda::AssignZero, runs, factor.dtypes);
  }
  return cudaLaunchKernelEx(&configuration, factor.in_double ? cuda::ScaleInDouble : cuda::Scale,
                            runs, factor);
}

cudaError_t CheckKernels() {
  const void* const kernels[] = {
      reinterpret_cast<const void*>(cuda::Measure<NormKind::kMagnitudes>),
      reinterpret_cast<const void*>(cuda::Measure<NormKind::kSquares>),
      reinterpret_cast<const void*>(cuda::Measure<NormKind::kLargest>),
      reinterpret_cast<const void*>(cuda::Scale),
      reinterpret_cast<const void*>(cuda::ScaleInDouble),
      reinterpret_cast<const void*>(cuda::AssignZero)};
  for (const void* kernel : kernels) {
    cudaFuncAttributes attributes;
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
        error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace gradclip
