#include "tests/bench/elements.h"

#include <cstring>

namespace gradclip::bench {
namespace {

// The bits of a sign and a fraction, and those of the exponent of [0.5, 1), all over a word.
struct Pattern {
  uint64_t random;
  uint64_t fixed;
};

Pattern PatternOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {0x807fffff'807fffff, 0x3f000000'3f000000};
    case DType::kFloat16:
      return {0x83ff83ff'83ff83ff, 0x38003800'38003800};
    case DType::kBFloat16:
      return {0x807f807f'807f807f, 0x3f003f00'3f003f00};
    case DType::kFloat64:
      return {0x800fffff'ffffffff, 0x3fe00000'00000000};
  }
  return {};
}

}  // namespace

void FillElements(DType dtype, std::span<std::byte> bytes) {
  const Pattern pattern = PatternOf(dtype);
  uint64_t state = 1;
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    // SplitMix64 (Steele, Lea and Flood, 2014).
    uint64_t word = state += 0x9e3779b97f4a7c15;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9;
    word = (word ^ word >> 27) * 0x94d049bb133111eb;
    word = ((word ^ word >> 31) & pattern.random) | pattern.fixed;
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}

std::vector<std::vector<int64_t>> Gpt2Shapes() {
  std::vector<std::vector<int64_t>> shapes = {{50257, 768}, {1024, 768}};
  for (int block = 0; block < 12; ++block) {
    const std::vector<std::vector<int64_t>> layer = {{768},       {768},  {768, 2304}, {2304},
                                                     {768, 768},  {768},  {768},       {768},
                                                     {768, 3072}, {3072}, {3072, 768}, {768}};
    shapes.insert(shapes.end(), layer.begin(), layer.end());
  }
  shapes.push_back({768});
  shapes.push_back({768});
  return shapes;
}

}  // namespace gradclip::bench
