#include "tests/bench/plain.h"

#define GRADCLIP_INLINE inline __attribute__((always_inline))

namespace gradclip::bench {
namespace {

template <size_t kAccumulators>
GRADCLIP_INLINE uint64_t SumWords(std::span<const std::byte> memory) {
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  const size_t count = memory.size() / sizeof(uint64_t);
  uint64_t sums[kAccumulators] = {};
  for (size_t i = 0; i < count; i += kAccumulators) {
    for (size_t k = 0; k < kAccumulators; ++k) sums[k] += words[i + k];
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

uint64_t SumBy8(std::span<const std::byte> memory) {
  return SumWords<8>(memory);
}
void Scale(std::span<std::byte> memory, float factor) {
  ScaleFloats(memory, factor);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) uint64_t SumBy8Avx2(std::span<const std::byte> memory) {
  return SumWords<8>(memory);
}
__attribute__((target("avx2"))) void ScaleAvx2(std::span<std::byte> memory, float factor) {
  ScaleFloats(memory, factor);
}
#endif

}  // namespace

std::vector<ReadPass> ReadPasses() {
  std::vector<ReadPass> passes = {SumBy8};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) passes.push_back(SumBy8Avx2);
#endif
  return passes;
}

std::vector<ScalePass> ScalePasses() {
  std::vector<ScalePass> passes = {Scale};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) passes.push_back(ScaleAvx2);
#endif
  return passes;
}

}  // namespace gradclip::bench
