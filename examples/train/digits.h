// Pictures to learn from: noisy digits of seven segments, somewhere in a frame. A function of the
// seed alone.
#ifndef GRADCLIP_EXAMPLES_TRAIN_DIGITS_H_
#define GRADCLIP_EXAMPLES_TRAIN_DIGITS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace train {

inline constexpr size_t kPictureWidth = 7;
inline constexpr size_t kPictureHeight = 9;
inline constexpr size_t kDigits = 10;
// The pixels, and a 1 whose weights are biases.
inline constexpr size_t kInputs = kPictureWidth * kPictureHeight + 1;

struct Example {
  std::array<float, kInputs> input;
  size_t digit;
};

std::vector<Example> MakeDigits(size_t count, uint32_t seed);

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_DIGITS_H_
