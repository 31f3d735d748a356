#include "server/rpc/caller.h"

#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/net/acceptor.h"
#include "server/rpc/connections.h"

namespace gradclip {
namespace {

// Empty where there is none.
std::string CertificateName(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return "";
  const std::vector<grpc::string_ref> names = peer->GetPeerIdentity();
  return names.empty() ? "" : std::string(names.front().data(), names.front().size());
}

absl::StatusOr<std::string> IdentityOf(const grpc::ServerContextBase& context,
                                       const Environment& environment) {
  const Callers* const callers = environment.callers;
  if (callers != nullptr) {
    const auto found = context.client_metadata().find("authorization");
    if (found != context.client_metadata().end()) {
      return callers->Authenticate(absl::string_view(found->second.data(), found->second.size()));
    }
  }
  if (std::optional<std::string> user = UnixUserOf(context); user.has_value()) {
    if (*user == kUnlistedUsers) {
      return absl::PermissionDeniedError(
          "this user may not call over a unix socket of this server: its --unix-socket-uids says "
          "who may");
    }
    if (callers == nullptr || environment.unix_users_need_no_token) return *std::move(user);
  } else if (std::string name = CertificateName(context); !name.empty()) {
    // A certificate makes nobody a user of a unix socket.
    if (absl::StartsWith(name, kUserPrefix)) {
      return absl::UnauthenticatedError(
          absl::StrCat("the name in the client's certificate begins with ", kUserPrefix,
                       ", as only users of unix sockets are called"));
    }
    return name;
  }
  if (callers != nullptr) return callers->Authenticate(std::nullopt);
  return std::string();
}

}  // namespace

std::string HostOf(const grpc::ServerContextBase& context) {
  std::optional<std::string> user = UnixUserOf(context);
  return user.has_value() ? *std::move(user) : HostOf(context.peer());
}

absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context,
                                const Environment& environment) {
  absl::StatusOr<std::string> identity = IdentityOf(context, environment);
  if (!identity.ok()) return identity.status();
  Caller caller{.identity = *std::move(identity), .account = {}};
  caller.account = caller.identity.empty() ? HostOf(context) : caller.identity;
  return caller;
}

std::optional<TraceContext> TraceOf(const grpc::ServerContextBase& context) {
  const auto [first, last] = context.client_metadata().equal_range(kTraceparent);
  if (first == last || std::next(first) != last) return std::nullopt;  // only one has a meaning
  return ParseTraceparent({first->second.data(), first->second.size()});
}

absl::StatusOr<Entry> Enter(const Caller& caller, const Environment& environment) {
  Entry entry;
  if (environment.permissions != nullptr) {
    absl::StatusOr<std::shared_ptr<const Permission>> permission =
        environment.permissions->Of(caller.identity);
    if (!permission.ok()) return permission.status();
    entry.permission = *std::move(permission);
  }
  absl::StatusOr<CallLimits::Place> place = environment.call_limits.Enter(caller.account);
  if (!place.ok()) return place.status();
  entry.place = *std::move(place);
  return entry;
}

}  // namespace gradclip
