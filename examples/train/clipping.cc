#include "examples/train/clipping.h"

#include <utility>

#include "absl/time/time.h"

namespace train {

Clipping::Clipping(const std::string& server, double max_norm,
                   std::optional<Participant> participant)
    : client_(server), participant_(std::move(participant)) {
  options_.max_norm = max_norm;
}

absl::StatusOr<gradclip::ClipAnswer> Clipping::Clip(std::span<const gradclip::Tensor> gradient,
                                                    uint64_t step) {
  gradclip::CallOptions call;
  if (participant_.has_value()) {
    gradclip::Group& group = call.group.emplace();
    group.job = participant_->job;
    group.generation = participant_->generation;
    group.step = step;
    group.rank = participant_->rank;
    group.world_size = participant_->world_size;
    // A step that lacks a rank ends after this, for all, and the error names the rank.
    group.timeout = absl::Seconds(60);
    // Where a rank's call fails (it lost its server, or ran out of patience), the step is aborted
    // for all and nobody's gradient has been changed. All then try the step again, and the one that
    // failed may come with them.
    group.max_attempts = 3;
  }
  return client_.Clip(gradient, options_, call);
}

}  // namespace train
