// One process of a training run. The same code for the model in all three modes: they differ in
// what a process holds, and in what it exchanges with the others.
#ifndef GRADCLIP_EXAMPLES_TRAIN_TRAINER_H_
#define GRADCLIP_EXAMPLES_TRAIN_TRAINER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/train/collectives.h"
#include "examples/train/digits.h"
#include "examples/train/model.h"
#include "examples/train/range.h"
#include "examples/train/record.h"
#include "gradclip/client.h"

namespace train {

enum class Mode {
  // One process does everything, in the pieces that the processes of the other modes have.
  kSingle,
  // Each process has a part of the batch and all parameters, and updates a shard of them (ZeRO).
  kDataParallel,
  // Each process has the whole batch and some of the hidden units (tensor parallelism).
  kSharded,
};

const char* Name(Mode mode);

// Clips a process's part of the gradient in place.
using Clip = std::function<absl::StatusOr<gradclip::ClipAnswer>(
    std::span<gradclip::Tensor> gradient, uint64_t step)>;

// Not thread-safe.
class Trainer {
 public:
  // `pieces`: how many pieces batch and hidden layer are cut into, which is the number of processes
  // in all modes but kSingle. `collectives`, of all the run's processes, must outlive it.
  Trainer(Mode mode, size_t pieces, size_t rank, Collectives& collectives);

  // Fills a record for each step. The error says which step failed.
  absl::Status Train(const Clip& clip, std::span<Record> records);

 private:
  absl::StatusOr<Record> Step(uint64_t step, const Clip& clip);

  // Both write gradient_ and return the loss: of this process's parts of the batch, summed in
  // order, and of the whole batch, as far as this process owns its gradient.
  float GradientOfParts(uint64_t step);
  float GradientOfBatch(uint64_t step);

  // The part of the gradient that this process owns, or holds, as the service is told of it.
  std::vector<gradclip::Tensor> OwnGradient();
  void Update();
  uint64_t DigestOfAllParameters();

  const Mode mode_;
  const size_t pieces_;
  const size_t rank_;
  Collectives& collectives_;
  const std::vector<Example> examples_;
  Model model_;
  const Range parts_;  // of the batch
  const Range own_;    // of the elements held: those that this process clips and updates
  std::vector<float> gradient_;
  std::vector<float> momentum_;  // of own_ alone
};

// Of all elements of a gradient those that one of `ranks` owns: pieces as equal as cuts between
// blocks allow.
Range ShardOf(const std::vector<Parameter>& layout, size_t ranks, size_t rank);

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_TRAINER_H_
