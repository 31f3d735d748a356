// Random numbers that are the same wherever the program is compiled, which those of
// std::uniform_real_distribution need not be.
#ifndef GRADCLIP_EXAMPLES_TRAIN_UNIFORM_H_
#define GRADCLIP_EXAMPLES_TRAIN_UNIFORM_H_

#include <random>

namespace train {

inline float Uniform(std::mt19937& random, float low, float high) {
  constexpr float kUnit = 1.0f / (1u << 24);
  return low + (high - low) * (static_cast<float>(random() >> 8) * kUnit);
}

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_UNIFORM_H_
