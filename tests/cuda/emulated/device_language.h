// What a kernel is written in: qualifiers, built-in variables, barriers, warp operations, atomics,
// cached loads and stores, and arithmetic whose rounding CUDA names. Math functions are the host's.
//
// Blocks of a launch run one after another, so a static variable is one block's shared memory; its
// content is left from the block before.
#ifndef GRADCLIP_TESTS_CUDA_EMULATED_DEVICE_LANGUAGE_H_
#define GRADCLIP_TESTS_CUDA_EMULATED_DEVICE_LANGUAGE_H_

#include <math.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
// Empty, for libstdc++ writes __attribute__((__noinline__)).
#define __noinline__

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;
inline constexpr int warpSize = 32;

namespace gradclip::emulated_cuda::device {

enum class WarpOperation : uint8_t {
  kSyncwarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
};

// Waits for the lanes of the mask and gives this lane's result. `argument` is CUDA's srcLane, delta
// or laneMask.
uint64_t WarpWait(WarpOperation operation, unsigned mask, uint64_t value, int argument = 0,
                  int width = 32);
// __syncthreads; `value` is what the votes of __syncthreads_count, _and and _or add up.
unsigned BlockWait(unsigned value = 0);
unsigned ActiveMask();

// The memory that the last checked access lay in, so that most checks are one comparison. Atomic
// for ThreadSanitizer, to which the threads of a block are threads.
struct CheckedRange {
  std::atomic<uintptr_t> first = 1;
  std::atomic<uintptr_t> bytes = 0;
};
extern constinit CheckedRange checked_load;
extern constinit CheckedRange checked_store;
// The launch fails unless the range is memory of this device or pinned.
void CheckRange(const void* pointer, size_t bytes, CheckedRange& cache);
void FailMisaligned(const void* pointer, size_t alignment);

template <typename T>
inline void Check(const T* pointer, CheckedRange& cache) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address % sizeof(T) != 0) FailMisaligned(pointer, sizeof(T));
  const uintptr_t first = cache.first.load(std::memory_order_relaxed);
  if (address < first ||
      address - first + sizeof(T) > cache.bytes.load(std::memory_order_relaxed)) {
    CheckRange(pointer, sizeof(T), cache);
  }
}

template <typename T>
inline T Shuffle(WarpOperation operation, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(
      static_cast<Bits>(WarpWait(operation, mask, std::bit_cast<Bits>(value), argument, width)));
}

template <typename T, typename Update>
inline T Modify(T* pointer, Update update) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(T) != 0) FailMisaligned(pointer, sizeof(T));
  T old;
  __atomic_load(pointer, &old, __ATOMIC_RELAXED);
  T next;
  do {
    next = update(old);
  } while (
      !__atomic_compare_exchange(pointer, &old, &next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return old;
}

}  // namespace gradclip::emulated_cuda::device

inline void __syncthreads() {
  gradclip::emulated_cuda::device::BlockWait();
}
inline int __syncthreads_count(int predicate) {
  return static_cast<int>(gradclip::emulated_cuda::device::BlockWait(predicate != 0));
}
inline int __syncthreads_or(int predicate) {
  return __syncthreads_count(predicate) != 0;
}
inline int __syncthreads_and(int predicate) {
  return __syncthreads_count(predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- warps ----

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  using namespace gradclip::emulated_cuda::device;
  WarpWait(WarpOperation::kSyncwarp, mask, 0);
}
inline unsigned __activemask() {
  return gradclip::emulated_cuda::device::ActiveMask();
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace gradclip::emulated_cuda::device;
  return static_cast<unsigned>(WarpWait(WarpOperation::kBallot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  using namespace gradclip::emulated_cuda::device;
  return static_cast<int>(WarpWait(WarpOperation::kAny, mask, predicate != 0));
}
inline int __all_sync(unsigned mask, int predicate) {
  using namespace gradclip::emulated_cuda::device;
  return static_cast<int>(WarpWait(WarpOperation::kAll, mask, predicate != 0));
}

#define EMULATED_CUDA_SHUFFLES(T)                                                             \
  inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {                    \
    using namespace gradclip::emulated_cuda::device;                                          \
    return Shuffle(WarpOperation::kShuffle, mask, value, lane, width);                        \
  }                                                                                           \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {           \
    using namespace gradclip::emulated_cuda::device;                                          \
    return Shuffle(WarpOperation::kShuffleUp, mask, value, static_cast<int>(delta), width);   \
  }                                                                                           \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {         \
    using namespace gradclip::emulated_cuda::device;                                          \
    return Shuffle(WarpOperation::kShuffleDown, mask, value, static_cast<int>(delta), width); \
  }                                                                                           \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {               \
    using namespace gradclip::emulated_cuda::device;                                          \
    return Shuffle(WarpOperation::kShuffleXor, mask, value, lanes, width);                    \
  }
EMULATED_CUDA_SHUFFLES(int)
EMULATED_CUDA_SHUFFLES(unsigned)
EMULATED_CUDA_SHUFFLES(long)
EMULATED_CUDA_SHUFFLES(unsigned long)
EMULATED_CUDA_SHUFFLES(long long)
EMULATED_CUDA_SHUFFLES(unsigned long long)
EMULATED_CUDA_SHUFFLES(float)
EMULATED_CUDA_SHUFFLES(double)
#undef EMULATED_CUDA_SHUFFLES

#define EMULATED_CUDA_REDUCE(name, operation)                                      \
  inline unsigned name(unsigned mask, unsigned value) {                            \
    using namespace gradclip::emulated_cuda::device;                               \
    return static_cast<unsigned>(WarpWait(WarpOperation::operation, mask, value)); \
  }
EMULATED_CUDA_REDUCE(__reduce_add_sync, kAdd)
EMULATED_CUDA_REDUCE(__reduce_min_sync, kMin)
EMULATED_CUDA_REDUCE(__reduce_max_sync, kMax)
EMULATED_CUDA_REDUCE(__reduce_and_sync, kAnd)
EMULATED_CUDA_REDUCE(__reduce_or_sync, kOr)
EMULATED_CUDA_REDUCE(__reduce_xor_sync, kXor)
#undef EMULATED_CUDA_REDUCE

// ---- atomics ----

#define EMULATED_CUDA_ATOMIC(name, T, expression)                              \
  inline T name(T* address, T value) {                                         \
    return gradclip::emulated_cuda::device::Modify(                            \
        address, [value]([[maybe_unused]] T old) -> T { return expression; }); \
  }
#define EMULATED_CUDA_ATOMICS(T)                                        \
  EMULATED_CUDA_ATOMIC(atomicMin, T, value < old ? value : old)         \
  EMULATED_CUDA_ATOMIC(atomicMax, T, value > old ? value : old)         \
  EMULATED_CUDA_ATOMIC(atomicAnd, T, old& value)                        \
  EMULATED_CUDA_ATOMIC(atomicOr, T, old | value)                        \
  EMULATED_CUDA_ATOMIC(atomicXor, T, old ^ value)                       \
  EMULATED_CUDA_ATOMIC(atomicExch, T, value)                            \
  inline T atomicCAS(T* address, T expected, T value) {                 \
    return gradclip::emulated_cuda::device::Modify(                     \
        address, [=](T old) { return old == expected ? value : old; }); \
  }
EMULATED_CUDA_ATOMICS(int)
EMULATED_CUDA_ATOMICS(unsigned)
EMULATED_CUDA_ATOMICS(unsigned long long)
EMULATED_CUDA_ATOMIC(atomicAdd, int,
                     static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
EMULATED_CUDA_ATOMIC(atomicAdd, unsigned, old + value)
EMULATED_CUDA_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATED_CUDA_ATOMIC(atomicAdd, float, old + value)
EMULATED_CUDA_ATOMIC(atomicAdd, double, old + value)
EMULATED_CUDA_ATOMIC(atomicSub, int,
                     static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
EMULATED_CUDA_ATOMIC(atomicSub, unsigned, old - value)
EMULATED_CUDA_ATOMIC(atomicExch, float, value)
#undef EMULATED_CUDA_ATOMICS
#undef EMULATED_CUDA_ATOMIC

// ---- loads and stores that name a cache ----

#define EMULATED_CUDA_LOAD(name)                                                           \
  template <typename T>                                                                    \
  inline T name(const T* pointer) {                                                        \
    gradclip::emulated_cuda::device::Check(pointer,                                        \
                                           gradclip::emulated_cuda::device::checked_load); \
    return *pointer;                                                                       \
  }
#define EMULATED_CUDA_STORE(name)                                                           \
  template <typename T>                                                                     \
  inline void name(T* pointer, std::type_identity_t<T> value) {                             \
    gradclip::emulated_cuda::device::Check(pointer,                                         \
                                           gradclip::emulated_cuda::device::checked_store); \
    *pointer = value;                                                                       \
  }
EMULATED_CUDA_LOAD(__ldg)
EMULATED_CUDA_LOAD(__ldcs)
EMULATED_CUDA_LOAD(__ldcg)
EMULATED_CUDA_LOAD(__ldca)
EMULATED_CUDA_LOAD(__ldlu)
EMULATED_CUDA_LOAD(__ldcv)
EMULATED_CUDA_STORE(__stcs)
EMULATED_CUDA_STORE(__stcg)
EMULATED_CUDA_STORE(__stwb)
EMULATED_CUDA_STORE(__stwt)
#undef EMULATED_CUDA_LOAD
#undef EMULATED_CUDA_STORE

// ---- bits ----

inline int __float_as_int(float value) {
  return std::bit_cast<int>(value);
}
inline float __int_as_float(int bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline long long __double_as_longlong(double value) {
  return std::bit_cast<long long>(value);
}
inline double __longlong_as_double(long long bits) {
  return std::bit_cast<double>(bits);
}
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(uint64_t{static_cast<uint32_t>(high)} << 32 |
                               static_cast<uint32_t>(low));
}
inline int __double2hiint(double value) {
  return static_cast<int>(std::bit_cast<uint64_t>(value) >> 32);
}
inline int __double2loint(double value) {
  return static_cast<int>(static_cast<uint32_t>(std::bit_cast<uint64_t>(value)));
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
}
inline int __popcll(unsigned long long bits) {
  return std::popcount(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __ffsll(long long bits) {
  return __builtin_ffsll(bits);
}
inline int __clz(int bits) {
  return std::countl_zero(static_cast<unsigned>(bits));
}
inline int __clzll(long long bits) {
  return std::countl_zero(static_cast<unsigned long long>(bits));
}

// ---- arithmetic of named rounding; nothing of this project is compiled with contraction ----

inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __dsqrt_rn(double a) {
  return std::sqrt(a);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float __double2float_rn(double a) {
  return static_cast<float>(a);
}

#define EMULATED_CUDA_MIN_MAX(T) \
  constexpr T min(T a, T b) {    \
    return b < a ? b : a;        \
  }                              \
  constexpr T max(T a, T b) {    \
    return a < b ? b : a;        \
  }
EMULATED_CUDA_MIN_MAX(int)
EMULATED_CUDA_MIN_MAX(unsigned)
EMULATED_CUDA_MIN_MAX(long)
EMULATED_CUDA_MIN_MAX(unsigned long)
EMULATED_CUDA_MIN_MAX(long long)
EMULATED_CUDA_MIN_MAX(unsigned long long)
#undef EMULATED_CUDA_MIN_MAX
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}

#endif  // GRADCLIP_TESTS_CUDA_EMULATED_DEVICE_LANGUAGE_H_
