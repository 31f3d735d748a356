// The tries of a call that may be a rank's part in a step of a group: within one attempt as of any
// other call, and with the next attempt where the step was aborted. For one call; not thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_GROUP_TRIES_H_
#define GRADCLIP_CLIENT_GRADCLIP_GROUP_TRIES_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/gradclip/client_core.h"
#include "gradclip/client.h"
#include "grpcpp/support/slice.h"

namespace gradclip {

// INVALID_ARGUMENT, naming field, value and range, for a group that no server takes.
absl::Status CheckGroup(const Group& group);

class GroupTries {
 public:
  // `core` must outlive it.
  GroupTries(ClientCore& core, const CallOptions& call) : core_(core), group_(call.group) {}

  // One try. `group` is the start message's field of that name, serialised (the same number in
  // both RPCs); empty without a group. `changed`: the caller's memory is no longer what it was.
  using Run = absl::FunctionRef<absl::Status(Connection& connection, const grpc::Slice& group,
                                             bool& changed)>;

  // Errors name the server.
  absl::Status Try(absl::Time deadline, Run run);

  // The attempt that was tried last.
  uint32_t attempt() const { return group_.has_value() ? group_->attempt : 0; }
  const std::optional<Group>& group() const { return group_; }

 private:
  // All tries of one attempt.
  absl::Status TryAttempt(absl::Time deadline, Run run, bool& changed);
  // ABORTED where `connection` leads to another server (or store) than the attempt began with.
  absl::Status CheckInstance(Connection& connection, absl::Time deadline, std::string& first) const;

  ClientCore& core_;
  std::optional<Group> group_;  // with the attempt at hand
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_GROUP_TRIES_H_
