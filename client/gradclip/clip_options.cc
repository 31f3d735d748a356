#include "client/gradclip/clip_options.h"

#include "absl/strings/str_format.h"

namespace gradclip {

absl::Status CheckOptions(const ClipOptions& options, const CallOptions& call) {
  if (call.group.has_value() && options.total_norm.has_value()) {
    return absl::InvalidArgumentError(
        "total_norm is set together with group; where the norm is known, ranks have nothing to "
        "share");
  }
  if (options.max_norm >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "max_norm is %g; it must be set to a value >= 0 (+infinity measures and never clips)",
      options.max_norm));
}

ClipOptions WithReplyChosen(const ClipOptions& options, ReplyMode fastest) {
  ClipOptions chosen = options;
  if (options.reply != ReplyMode::kFastest) return chosen;
  const bool known = options.total_norm.has_value() && fastest == ReplyMode::kCoefficient;
  chosen.reply = known ? ReplyMode::kGradientIfChanged : fastest;
  return chosen;
}

}  // namespace gradclip
