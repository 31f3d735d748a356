#include "examples/train/trainer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace train {
namespace {

constexpr uint32_t kSeed = 1;
constexpr size_t kExamples = 1920;
constexpr size_t kBatch = 96;
constexpr float kLearningRate = 0.05f;
constexpr float kMomentum = 0.9f;

std::vector<Range> Slices(Mode mode, size_t pieces, size_t rank) {
  if (mode == Mode::kSharded) return {UnitsOfSlice(pieces, rank)};
  std::vector<Range> all;
  for (size_t i = 0; i < pieces; ++i) all.push_back(UnitsOfSlice(pieces, i));
  return all;
}

Model::AllReduce AllReduce(Mode mode, size_t rank, Collectives& collectives) {
  if (mode != Mode::kSharded) return [](std::span<float>) {};  // every slice is here
  return [&collectives, rank](std::span<float> values) { collectives.AllReduce(rank, values); };
}

// The last place up to `element` where the gradient may be cut.
size_t CutBefore(const std::vector<Parameter>& layout, size_t element) {
  size_t cut = 0;
  for (const Parameter& parameter : layout) {
    if (parameter.offset > element) break;
    const size_t within = std::min(element - parameter.offset, parameter.size());
    cut = within == parameter.size() ? parameter.offset + within
                                     : parameter.offset + within / kBlockElements * kBlockElements;
  }
  return cut;
}

}  // namespace

const char* Name(Mode mode) {
  switch (mode) {
    case Mode::kSingle:
      return "single";
    case Mode::kDataParallel:
      return "data-parallel";
    case Mode::kSharded:
      return "sharded";
  }
  return "";
}

Range ShardOf(const std::vector<Parameter>& layout, size_t ranks, size_t rank) {
  const Range equal = Cut(Elements(layout), ranks, rank);
  return {CutBefore(layout, equal.begin), CutBefore(layout, equal.end)};
}

Trainer::Trainer(Mode mode, size_t pieces, size_t rank, Collectives& collectives)
    : mode_(mode),
      pieces_(pieces),
      rank_(rank),
      collectives_(collectives),
      examples_(MakeDigits(kExamples, kSeed)),
      model_(Slices(mode, pieces, rank), kSeed, AllReduce(mode, rank, collectives)),
      parts_(mode == Mode::kDataParallel ? Range{rank, rank + 1} : Range{0, pieces}),
      own_(mode == Mode::kDataParallel ? ShardOf(model_.layout(), pieces, rank)
                                       : Range{0, model_.values().size()}),
      gradient_(model_.values().size()),
      momentum_(own_.size(), 0.0f) {}

absl::Status Trainer::Train(const Clip& clip, std::span<Record> records) {
  for (uint64_t step = 0; step < records.size(); ++step) {
    const absl::StatusOr<Record> record = Step(step, clip);
    if (!record.ok()) {
      return absl::Status(record.status().code(),
                          absl::StrCat("step ", step, ": ", record.status().message()));
    }
    records[step] = *record;
  }
  return absl::OkStatus();
}

absl::StatusOr<Record> Trainer::Step(uint64_t step, const Clip& clip) {
  Record record = {};
  record.loss = GradientOfBatch(step);
  std::vector<gradclip::Tensor> gradient = OwnGradient();
  const absl::StatusOr<gradclip::ClipAnswer> answer = clip(gradient, step);
  if (!answer.ok()) return answer.status();
  record.total_norm = answer->norm.total_norm;
  record.coefficient = answer->coefficient;
  record.attempt = answer->norm.attempt;
  Update();
  record.parameters = DigestOfAllParameters();
  return record;
}

float Trainer::GradientOfParts(uint64_t step) {
  const size_t first = step * kBatch % kExamples;
  const std::span<const Example> batch = std::span(examples_).subspan(first, kBatch);
  std::fill(gradient_.begin(), gradient_.end(), 0.0f);
  std::vector<float> of_part(gradient_.size());
  float loss = 0;
  for (size_t i = parts_.begin; i < parts_.end; ++i) {
    const Range part = Cut(kBatch, pieces_, i);
    loss += model_.Gradient(batch.subspan(part.begin, part.size()), 1.0f / kBatch, of_part);
    for (size_t k = 0; k < gradient_.size(); ++k) gradient_[k] += of_part[k];
  }
  return loss;
}

float Trainer::GradientOfBatch(uint64_t step) {
  float loss = GradientOfParts(step);
  if (mode_ == Mode::kDataParallel) {
    collectives_.ReduceScatter(rank_, gradient_, own_);
    collectives_.AllReduce(rank_, {&loss, 1});
  }
  return loss;
}

std::vector<gradclip::Tensor> Trainer::OwnGradient() {
  std::vector<gradclip::Tensor> tensors;
  for (const Parameter& parameter : model_.layout()) {
    const size_t begin = std::max(parameter.offset, own_.begin);
    const size_t end = std::min(parameter.offset + parameter.size(), own_.end);
    if (begin >= end) continue;
    gradclip::Tensor& tensor = tensors.emplace_back();
    tensor.name = parameter.name;
    tensor.shape = {static_cast<int64_t>(end - begin)};
    tensor.data = gradient_.data() + begin;
    // What all processes hold is counted by the first one, and clipped by all.
    tensor.replica = mode_ == Mode::kSharded && !parameter.per_unit && rank_ != 0;
  }
  return tensors;
}

void Trainer::Update() {
  std::vector<float>& values = model_.values();
  for (size_t i = own_.begin; i < own_.end; ++i) {
    float& momentum = momentum_[i - own_.begin];
    momentum = kMomentum * momentum + gradient_[i];
    values[i] -= kLearningRate * momentum;
  }
  if (mode_ == Mode::kDataParallel) collectives_.AllGather(values, own_);
}

uint64_t Trainer::DigestOfAllParameters() {
  const std::vector<float>& held = model_.values();
  if (mode_ != Mode::kSharded) return Digest(held);
  // Rows of the other processes' units are gathered; what all processes have is this one's own.
  const std::vector<Parameter> whole_layout = Layout(kUnits);
  std::vector<float> all(Elements(whole_layout));
  for (size_t i = 0; i < whole_layout.size(); ++i) {
    const Parameter& part = model_.layout()[i];
    const std::span<float> whole =
        std::span(all).subspan(whole_layout[i].offset, whole_layout[i].size());
    const size_t begin = part.per_unit ? model_.units().begin * part.columns : 0;
    std::copy_n(held.begin() + part.offset, part.size(), whole.begin() + begin);
    if (part.per_unit) collectives_.AllGather(whole, {begin, begin + part.size()});
  }
  return Digest(all);
}

}  // namespace train
