#include "examples/train/digits.h"

#include <random>

#include "examples/train/uniform.h"

namespace train {
namespace {

// A digit is 5 pixels wide and 7 high: three bars across and four down, as on a pocket calculator.
constexpr size_t kDigitWidth = 5;
constexpr size_t kDigitHeight = 7;
constexpr size_t kSegments = 7;

// Of each digit the segments: top, right upper, right lower, bottom, left lower, left upper,
// middle.
constexpr const char* kLit[kDigits] = {"1111110", "0110000", "1101101", "1111001", "0110011",
                                       "1011011", "1011111", "1110000", "1111111", "1111011"};

// The segment that a pixel of the digit is of; kSegments where it is of none.
size_t SegmentAt(size_t x, size_t y) {
  const bool across = x > 0 && x + 1 < kDigitWidth;
  const bool upper = y < kDigitHeight / 2;
  if (across) return y == 0 ? 0 : y + 1 == kDigitHeight ? 3 : y == kDigitHeight / 2 ? 6 : kSegments;
  if (y % (kDigitHeight / 2) == 0) return kSegments;  // corners
  if (x == 0) return upper ? 5 : 4;
  return upper ? 1 : 2;
}

}  // namespace

std::vector<Example> MakeDigits(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Example> examples(count);
  for (Example& example : examples) {
    example.digit = random() % kDigits;
    for (float& pixel : example.input) pixel = Uniform(random, -0.5f, 0.5f);
    const float brightness = Uniform(random, 0.5f, 2.0f);
    const size_t left = random() % (kPictureWidth - kDigitWidth + 1);
    const size_t top = random() % (kPictureHeight - kDigitHeight + 1);
    for (size_t y = 0; y < kDigitHeight; ++y) {
      for (size_t x = 0; x < kDigitWidth; ++x) {
        const size_t segment = SegmentAt(x, y);
        if (segment == kSegments || kLit[example.digit][segment] == '0') continue;
        example.input[(top + y) * kPictureWidth + left + x] += brightness;
      }
    }
    example.input[kInputs - 1] = 1;
  }
  return examples;
}

}  // namespace train
