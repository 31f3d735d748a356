// What a process knows after each step, and where two processes differ.
#ifndef GRADCLIP_EXAMPLES_TRAIN_RECORD_H_
#define GRADCLIP_EXAMPLES_TRAIN_RECORD_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace train {

struct Record {
  float loss;  // before the step
  double total_norm;
  double coefficient;
  uint64_t parameters;  // Digest() of all the model's parameters after the step
  uint32_t attempt;     // that was answered; not compared
};

// FNV-1a over the bytes of the values.
uint64_t Digest(std::span<const float> values);

// The first step in which two processes' records are not the same bits, in words; nothing where all
// are. REQUIRES: both are of as many steps.
std::optional<std::string> FirstDifference(std::span<const Record> expected,
                                           std::span<const Record> actual);

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_RECORD_H_
