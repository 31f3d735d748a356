// What a client decides of ClipOptions before a call. Pure functions.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CLIP_OPTIONS_H_
#define GRADCLIP_CLIENT_GRADCLIP_CLIP_OPTIONS_H_

#include "absl/status/status.h"
#include "gradclip/client.h"

namespace gradclip {

// INVALID_ARGUMENT where max_norm was not set, or a norm is given for a group.
absl::Status CheckOptions(const ClipOptions& options, const CallOptions& call);

// The options with `fastest` in place of kFastest; with kGradientIfChanged where total_norm is
// given and `fastest` does not go with it.
ClipOptions WithReplyChosen(const ClipOptions& options, ReplyMode fastest);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CLIP_OPTIONS_H_
