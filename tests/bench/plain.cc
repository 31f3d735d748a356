#include "tests/bench/plain.h"

#define GRADCLIP_INLINE inline __attribute__((always_inline))

namespace gradclip::bench {
namespace {

// In lines of 64 bytes. kAhead: bytes from here to the line that is asked for; 0: the hardware's
// own prefetching has to do.
template <size_t kAhead>
GRADCLIP_INLINE uint64_t SumWords(std::span<const std::byte> memory) {
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  const size_t count = memory.size() / sizeof(uint64_t);
  uint64_t sums[8] = {};
  for (size_t i = 0; i < count; i += 8) {
    if (kAhead > 0) __builtin_prefetch(words + i + kAhead / sizeof(uint64_t));
    for (size_t k = 0; k < 8; ++k) sums[k] += words[i + k];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

GRADCLIP_INLINE void ScaleFloats(std::span<std::byte> memory, float factor) {
  auto* floats = reinterpret_cast<float*>(memory.data());
  const size_t count = memory.size() / sizeof(float);
  for (size_t i = 0; i < count; ++i) floats[i] *= factor;
}

// The passes of one instruction set.
#define GRADCLIP_PASSES(name, attributes)                                  \
  attributes uint64_t Read##name(std::span<const std::byte> memory) {      \
    return SumWords<0>(memory);                                            \
  }                                                                        \
  attributes uint64_t ReadAhead##name(std::span<const std::byte> memory) { \
    return SumWords<2048>(memory);                                         \
  }                                                                        \
  attributes void Scale##name(std::span<std::byte> memory, float factor) { \
    ScaleFloats(memory, factor);                                           \
  }

GRADCLIP_PASSES(Baseline, )
#ifdef __x86_64__
GRADCLIP_PASSES(Avx2, __attribute__((target("avx2"))))
GRADCLIP_PASSES(Avx512, __attribute__((target("avx512f,prefer-vector-width=512"))))
#endif

}  // namespace

std::vector<ReadPass> ReadPasses() {
  std::vector<ReadPass> passes = {ReadBaseline, ReadAheadBaseline};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) passes.insert(passes.end(), {ReadAvx2, ReadAheadAvx2});
  if (__builtin_cpu_supports("avx512f")) passes.insert(passes.end(), {ReadAvx512, ReadAheadAvx512});
#endif
  return passes;
}

std::vector<ScalePass> ScalePasses() {
  std::vector<ScalePass> passes = {ScaleBaseline};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) passes.push_back(ScaleAvx2);
  if (__builtin_cpu_supports("avx512f")) passes.push_back(ScaleAvx512);
#endif
  return passes;
}

}  // namespace gradclip::bench
