// Clips one rank's part of a job's gradient with GradClip: what a trainer takes over from here.
// Thread-safe, as the client is.
#ifndef GRADCLIP_EXAMPLES_TRAIN_CLIPPING_H_
#define GRADCLIP_EXAMPLES_TRAIN_CLIPPING_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "gradclip/client.h"

namespace train {

// Who takes part in a job. Without it a call has the whole gradient.
struct Participant {
  std::string job;
  uint64_t generation;  // a run's own, larger than those of the job's runs before it
  uint32_t rank;
  uint32_t world_size;
};

class Clipping {
 public:
  Clipping(const std::string& server, double max_norm, std::optional<Participant> participant);

  // Clips `gradient`, this rank's part, in place by the norm of all ranks' parts. All ranks call
  // for each step. After an error the gradient is as it was, and the step was clipped nowhere, or
  // it is not known: a trainer stops, or goes back to a checkpoint and raises the generation.
  absl::StatusOr<gradclip::ClipAnswer> Clip(std::span<const gradclip::Tensor> gradient,
                                            uint64_t step);

 private:
  gradclip::Client client_;
  gradclip::ClipOptions options_;
  const std::optional<Participant> participant_;
};

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_CLIPPING_H_
