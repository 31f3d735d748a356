// Who makes a call. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_CALLER_H_
#define GRADCLIP_SERVER_RPC_CALLER_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/status/statusor.h"
#include "server/security/tokens.h"

namespace gradclip {

// The name of the call's token, or else the name in the client's verified certificate: its first
// alternative name, or its common name. Empty where there is neither and `callers` is null.
// UNAUTHENTICATED for a token that is not known, and for a caller without either otherwise.
absl::StatusOr<std::string> CallerOf(const grpc::ServerContextBase& context,
                                     const Callers* callers);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CALLER_H_
