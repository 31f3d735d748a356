// The calls of one command about one gradient: streamed from where it is, or from memory that it
// shares with the server (--shared). Belongs to one thread.
#ifndef GRADCLIP_CLIENT_COMMAND_GRADIENT_CALLS_H_
#define GRADCLIP_CLIENT_COMMAND_GRADIENT_CALLS_H_

#include <sys/types.h>

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"

namespace gradclip {

// --shared, --server-uids.
struct SharedFlags {
  bool shared = false;
  std::vector<uid_t> server_uids;

  void AddTo(CLI::App& verb);
};

class GradientCalls {
 public:
  // Calls about `tensors`, which have to outlive it, as does `client`. With --shared they are
  // copied into shared memory.
  static absl::StatusOr<GradientCalls> Make(Client& client, const SharedFlags& flags,
                                            std::span<const Tensor> tensors);

  // The tensors that calls are about.
  std::span<const Tensor> tensors() const;

  absl::StatusOr<NormAnswer> ComputeNorm(const NormOptions& options, const CallOptions& call);
  absl::StatusOr<ClipAnswer> Clip(const ClipOptions& options, const CallOptions& call);

  // Brings what was clipped back to where it was made of.
  void CopyBack(const ClipAnswer& answer);

  // With --shared, the field that says whether the last call went through shared memory.
  void AppendField(std::vector<std::pair<std::string, std::string>>& fields) const;

 private:
  GradientCalls(Client& client, std::span<const Tensor> tensors)
      : client_(client), given_(tensors) {}

  Client& client_;
  const std::span<const Tensor> given_;
  std::optional<SharedGradient> shared_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_GRADIENT_CALLS_H_
