// The loops over elements that are compiled once per instruction set. Plain functions and data;
// thread-safe.
//
// A kernel works on whole groups of kLanes elements at any address, in the default floating-point
// environment; the caller (CpuBackend) sees to that environment, to heads and to tails.
#ifndef GRADCLIP_SERVER_BACKEND_CPU_KERNELS_H_
#define GRADCLIP_SERVER_BACKEND_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace gradclip {

// The kernels of one element type. `groups` counts groups of 32 elements.
struct ElementKernels {
  using AddToLanes = void (*)(const std::byte* elements, size_t groups, double* lanes);

  // Add |x|, or x * x, of element i of each group to lanes[i], in double.
  AddToLanes add_magnitudes;
  AddToLanes add_squares;

  // The largest bit pattern without its sign. Patterns order as magnitudes do, NaN above infinity.
  uint64_t (*largest_bits)(const std::byte* elements, size_t groups);

  // Adds to *nonfinite and *zeros. REQUIRES: groups <= kMostCountedGroups.
  void (*count)(const std::byte* elements, size_t groups, uint64_t* nonfinite, uint64_t* zeros);

  // Multiplies in place by the coefficient, for F32, F16 and BF16 rounded to float.
  void (*scale)(std::byte* elements, size_t groups, double coefficient);
};

// The counters of 16-bit elements are 16 bits wide.
inline constexpr size_t kMostCountedGroups = 4096;

struct Kernels {
  ElementKernels float32, float16, bfloat16, float64;
};

// What the compiler is allowed everywhere: SSE2 on x86-64, NEON on AArch64.
extern const Kernels kBaselineKernels;
#ifdef __x86_64__
// AVX2, FMA (which contraction must not use) and F16C.
extern const Kernels kAvx2Kernels;
// The same and AVX-512 F, BW, VL and DQ.
extern const Kernels kAvx512Kernels;
#endif

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CPU_KERNELS_H_
