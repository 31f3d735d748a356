// What the calls of one client share: its connections, the tries of a call, the declarations that
// were serialised last, and the kernels by which it scales memory itself.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CLIENT_CORE_H_
#define GRADCLIP_CLIENT_GRADCLIP_CLIENT_CORE_H_

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/call.h"
#include "client/gradclip/connection.h"
#include "client/gradclip/connection_pool.h"
#include "client/gradclip/start_cache.h"
#include "gradclip/client.h"
#include "server/backend/backend.h"

namespace gradclip {

class ClientCore {
 public:
  ClientCore(std::string address, ClientOptions options);

  // One try over one connection. `changed`: the caller's memory is no longer what it was.
  using Attempt = absl::FunctionRef<absl::Status(Connection& connection, bool& changed)>;

  // Runs `attempt`, again with back-off where it ended with UNAVAILABLE and changed nothing, at
  // most `retries` times. Errors name the server.
  absl::Status Try(absl::Time deadline, int retries, Attempt attempt);

  const std::string& address() const { return connections_.address(); }
  const ClientOptions& options() const { return options_; }
  StartCache& starts() { return starts_; }

  // The kernels that this machine runs best.
  const absl::StatusOr<std::unique_ptr<Backend>>& backend() const { return backend_; }

 private:
  // `server`: is set to its address once there is a connection.
  absl::Status TryOnce(absl::Time deadline, Attempt attempt, bool& changed, std::string& server);

  ConnectionPool connections_;
  const ClientOptions options_;
  const absl::StatusOr<std::unique_ptr<Backend>> backend_;
  StartCache starts_;
};

absl::Time DeadlineOf(const CallOptions& call);

// One GetServerInfo over `connection`.
absl::StatusOr<ServerInfo> AskServerInfo(Connection& connection, const CallTerms& terms);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CLIENT_CORE_H_
