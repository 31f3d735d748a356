// A network that reads digits: 64 inputs, 320 hidden units, 64 features, 10 classes; ReLU after
// both hidden layers, softmax and cross-entropy at the end. Plain loops over float, in one order of
// summation whichever process holds what. Not thread-safe.
//
// The hidden layer may be cut into slices of units, of which a process holds all or some. A slice
// gives a partial sum for each feature, and the partial sums are added in the slices' order. All
// else is small, and every process has it.
#ifndef GRADCLIP_EXAMPLES_TRAIN_MODEL_H_
#define GRADCLIP_EXAMPLES_TRAIN_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "examples/train/digits.h"
#include "examples/train/range.h"

namespace train {

inline constexpr size_t kUnits = 320;
inline constexpr size_t kFeatures = 64;

// Of all units those in slice `index` of `slices`. A slice's weights are whole blocks of
// kBlockElements.
Range UnitsOfSlice(size_t slices, size_t index);

// A matrix (or vector) among the parameters, which lie one after another. The gradient lies alike.
struct Parameter {
  std::string name;
  size_t rows;
  size_t columns;
  size_t offset;  // of its first element
  bool per_unit;  // one row for each unit held; otherwise every process has all of it

  size_t size() const { return rows * columns; }
};

class Model {
 public:
  // Adds up what all processes give, in order of rank, into the memory given.
  using AllReduce = std::function<void(std::span<float> values)>;

  // Holds `slices`, which follow one another. The parameters' first values are a function of the
  // seed: the same whatever is held. `all_reduce` adds partial sums of slices held elsewhere.
  Model(std::vector<Range> slices, uint32_t seed, AllReduce all_reduce);

  // Writes the gradient of weight * (sum of the examples' losses), which it returns.
  float Gradient(std::span<const Example> examples, float weight, std::span<float> gradient) const;

  const std::vector<Parameter>& layout() const { return layout_; }
  Range units() const { return {slices_.front().begin, slices_.back().end}; }
  std::vector<float>& values() { return values_; }

 private:
  // Each for all examples, one row for each.
  std::vector<float> Hidden(std::span<const Example> examples) const;
  std::vector<float> Features(const std::vector<float>& hidden, size_t examples) const;
  // The loss, and its gradient by the features, before ReLU (`slopes`), and by the parameters.
  float Classify(std::span<const Example> examples, float weight,
                 const std::vector<float>& features, std::vector<float>& slopes,
                 std::span<float> gradient) const;
  void HiddenGradient(std::span<const Example> examples, const std::vector<float>& hidden,
                      const std::vector<float>& slopes, std::span<float> gradient) const;

  const std::vector<Range> slices_;
  const AllReduce all_reduce_;
  const std::vector<Parameter> layout_;
  std::vector<float> values_;
};

// The parameters of a process that holds so many units.
std::vector<Parameter> Layout(size_t units);

// How many elements they have.
size_t Elements(const std::vector<Parameter>& layout);

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_MODEL_H_
