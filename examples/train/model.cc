#include "examples/train/model.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "examples/train/uniform.h"

namespace train {
namespace {

constexpr size_t kUnitsOfBlock = kBlockElements / kInputs;
static_assert(kBlockElements % kInputs == 0 && kFeatures == kInputs && kUnits % kUnitsOfBlock == 0);

enum : size_t { kHiddenIn, kHiddenOut, kFeatureBias, kClassWeight, kClassBias };

// to += factor * from
void AddScaled(float factor, const float* from, size_t size, float* to) {
  for (size_t i = 0; i < size; ++i) to[i] += factor * from[i];
}

float Dot(const float* a, const float* b, size_t size) {
  float sum = 0;
  for (size_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// Replaces the classes' scores by their probabilities; returns the loss.
float Softmax(std::span<float> scores, size_t truth) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  const float score = scores[truth] - largest;
  float sum = 0;
  for (float& value : scores) sum += value = std::exp(value - largest);
  for (float& value : scores) value /= sum;
  return std::log(sum) - score;
}

// The whole model's; a process that holds some units takes theirs.
std::vector<float> FirstValues(uint32_t seed) {
  std::mt19937 random(seed);
  const std::vector<Parameter> layout = Layout(kUnits);
  std::vector<float> values(Elements(layout), 0.0f);
  for (const Parameter& parameter : layout) {
    if (parameter.rows == 1) continue;  // biases begin at 0
    const size_t sources = parameter.name == "hidden.out" ? kUnits : kInputs;
    const float bound = std::sqrt(6.0f / static_cast<float>(sources));
    for (size_t i = 0; i < parameter.size(); ++i) {
      values[parameter.offset + i] = Uniform(random, -bound, bound);
    }
  }
  return values;
}

}  // namespace

Range UnitsOfSlice(size_t slices, size_t index) {
  const Range blocks = Cut(kUnits / kUnitsOfBlock, slices, index);
  return {blocks.begin * kUnitsOfBlock, blocks.end * kUnitsOfBlock};
}

std::vector<Parameter> Layout(size_t units) {
  std::vector<Parameter> layout = {{"hidden.in", units, kInputs, 0, true},
                                   {"hidden.out", units, kFeatures, 0, true},
                                   {"feature.bias", 1, kFeatures, 0, false},
                                   {"class.weight", kDigits, kFeatures, 0, false},
                                   {"class.bias", 1, kDigits, 0, false}};
  for (size_t i = 1; i < layout.size(); ++i) {
    layout[i].offset = layout[i - 1].offset + layout[i - 1].size();
  }
  return layout;
}

size_t Elements(const std::vector<Parameter>& layout) {
  return layout.back().offset + layout.back().size();
}

Model::Model(std::vector<Range> slices, uint32_t seed, AllReduce all_reduce)
    : slices_(std::move(slices)),
      all_reduce_(std::move(all_reduce)),
      layout_(Layout(units().size())) {
  const std::vector<float> whole = FirstValues(seed);
  for (const Parameter& of_whole : Layout(kUnits)) {
    const Range rows = of_whole.per_unit ? units() : Range{0, of_whole.rows};
    const auto first = whole.begin() + of_whole.offset;
    values_.insert(values_.end(), first + rows.begin * of_whole.columns,
                   first + rows.end * of_whole.columns);
  }
}

float Model::Gradient(std::span<const Example> examples, float weight,
                      std::span<float> gradient) const {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  const std::vector<float> hidden = Hidden(examples);
  const std::vector<float> features = Features(hidden, examples.size());
  std::vector<float> slopes(features.size(), 0.0f);
  const float loss = Classify(examples, weight, features, slopes, gradient);
  HiddenGradient(examples, hidden, slopes, gradient);
  return loss;
}

std::vector<float> Model::Hidden(std::span<const Example> examples) const {
  const size_t units = this->units().size();
  const float* const weights = values_.data() + layout_[kHiddenIn].offset;
  std::vector<float> hidden(examples.size() * units);
  for (size_t e = 0; e < examples.size(); ++e) {
    for (size_t unit = 0; unit < units; ++unit) {
      const float sum = Dot(weights + unit * kInputs, examples[e].input.data(), kInputs);
      hidden[e * units + unit] = std::max(sum, 0.0f);
    }
  }
  return hidden;
}

std::vector<float> Model::Features(const std::vector<float>& hidden, size_t examples) const {
  const float* const weights = values_.data() + layout_[kHiddenOut].offset;
  const float* const bias = values_.data() + layout_[kFeatureBias].offset;
  std::vector<float> features(examples * kFeatures, 0.0f);
  for (const Range& slice : slices_) {
    std::vector<float> partial(features.size(), 0.0f);
    for (size_t e = 0; e < examples; ++e) {
      for (size_t unit = slice.begin - units().begin; unit < slice.end - units().begin; ++unit) {
        AddScaled(hidden[e * units().size() + unit], weights + unit * kFeatures, kFeatures,
                  &partial[e * kFeatures]);
      }
    }
    AddScaled(1, partial.data(), partial.size(), features.data());
  }
  all_reduce_(features);
  for (size_t i = 0; i < features.size(); ++i) {
    features[i] = std::max(features[i] + bias[i % kFeatures], 0.0f);
  }
  return features;
}

float Model::Classify(std::span<const Example> examples, float weight,
                      const std::vector<float>& features, std::vector<float>& slopes,
                      std::span<float> gradient) const {
  const float* const weights = values_.data() + layout_[kClassWeight].offset;
  const float* const bias = values_.data() + layout_[kClassBias].offset;
  float loss = 0;
  for (size_t e = 0; e < examples.size(); ++e) {
    const float* const input = &features[e * kFeatures];
    float* const slope = &slopes[e * kFeatures];
    std::array<float, kDigits> scores;
    for (size_t digit = 0; digit < kDigits; ++digit) {
      scores[digit] = Dot(weights + digit * kFeatures, input, kFeatures) + bias[digit];
    }
    loss += Softmax(scores, examples[e].digit);
    scores[examples[e].digit] -= 1;  // now the loss's gradient by the scores
    for (size_t digit = 0; digit < kDigits; ++digit) {
      const float by_score = weight * scores[digit];
      AddScaled(by_score, input, kFeatures,
                &gradient[layout_[kClassWeight].offset + digit * kFeatures]);
      gradient[layout_[kClassBias].offset + digit] += by_score;
      AddScaled(by_score, weights + digit * kFeatures, kFeatures, slope);
    }
    for (size_t i = 0; i < kFeatures; ++i) {
      if (input[i] == 0) slope[i] = 0;
    }
    AddScaled(1, slope, kFeatures, &gradient[layout_[kFeatureBias].offset]);
  }
  return weight * loss;
}

void Model::HiddenGradient(std::span<const Example> examples, const std::vector<float>& hidden,
                           const std::vector<float>& slopes, std::span<float> gradient) const {
  const size_t units = this->units().size();
  const float* const weights = values_.data() + layout_[kHiddenOut].offset;
  for (size_t e = 0; e < examples.size(); ++e) {
    const float* const slope = &slopes[e * kFeatures];
    for (size_t unit = 0; unit < units; ++unit) {
      const float output = hidden[e * units + unit];
      if (output == 0) continue;
      AddScaled(output, slope, kFeatures, &gradient[layout_[kHiddenOut].offset + unit * kFeatures]);
      AddScaled(Dot(slope, weights + unit * kFeatures, kFeatures), examples[e].input.data(),
                kInputs, &gradient[layout_[kHiddenIn].offset + unit * kInputs]);
    }
  }
}

}  // namespace train
