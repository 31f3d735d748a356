#include "server/rpc/caller.h"

#include <vector>

#include "absl/strings/string_view.h"

namespace gradclip {

absl::StatusOr<std::string> CallerOf(const grpc::ServerContextBase& context,
                                     const Callers* callers) {
  if (callers != nullptr) {
    const auto found = context.client_metadata().find("authorization");
    if (found != context.client_metadata().end()) {
      return callers->Authenticate(absl::string_view(found->second.data(), found->second.size()));
    }
  }
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer != nullptr && peer->IsPeerAuthenticated()) {
    const std::vector<grpc::string_ref> names = peer->GetPeerIdentity();
    if (!names.empty()) return std::string(names.front().data(), names.front().size());
  }
  if (callers != nullptr) return callers->Authenticate(std::nullopt);
  return std::string();
}

}  // namespace gradclip
