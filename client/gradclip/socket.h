// A connected stream socket to a server's address. Thread-safe: functions only.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SOCKET_H_
#define GRADCLIP_CLIENT_GRADCLIP_SOCKET_H_

#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace gradclip {

// Where a server listens: host and port, or the path of a unix socket (a leading NUL: abstract).
struct ServerAddress {
  std::string host;
  std::string port;
  std::string path;  // not empty: a unix socket
};

// INVALID_ARGUMENT where `address` is none of the forms that Connection::Open takes.
absl::StatusOr<ServerAddress> ParseServerAddress(absl::string_view address);

// A non-blocking socket, connected; the caller closes it. It fails within about 30 s of the other
// host's vanishing, also where nothing is sent. Errors as Connection::Open.
absl::StatusOr<int> ConnectSocket(const ServerAddress& address, absl::Time deadline);

// Whether what is sent to this address stays on this host: a unix socket, or the loopback
// interface.
bool IsOnThisHost(const sockaddr_storage& address);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SOCKET_H_
