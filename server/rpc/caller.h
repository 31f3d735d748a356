// Who makes a call. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_CALLER_H_
#define GRADCLIP_SERVER_RPC_CALLER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/rpc/call_limits.h"
#include "server/rpc/environment.h"
#include "server/security/allow_list.h"
#include "server/wire/trace_context.h"

namespace gradclip {

struct Caller {
  // The name of the call's token, or "uid:1000" for a user of a unix socket, or the name in the
  // client's verified certificate: its first alternative name, or its common name. Empty where
  // nobody has to say who they are.
  std::string identity;
  // Whose limits count: the identity, or else the host.
  std::string account;
};

// Who a call counts for where nobody says who they are: its Peer::host.
std::string HostOf(const grpc::ServerContextBase& context);

// UNAUTHENTICATED for a token that is not known, and for a caller without any of the three where
// tokens are asked for; PERMISSION_DENIED for a user that may not call over a unix socket, and has
// no token.
absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context,
                                const Environment& environment);

// What the caller says of the trace that the call belongs to, where it says something that is
// sound.
std::optional<TraceContext> TraceOf(const grpc::ServerContextBase& context);

// What a call that may be made has.
struct Entry {
  std::shared_ptr<const Permission> permission;  // null: everything
  CallLimits::Place place;
};
// PERMISSION_DENIED for a caller that may do nothing (--allow); errors as CallLimits::Enter.
absl::StatusOr<Entry> Enter(const Caller& caller, const Environment& environment);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CALLER_H_
