// One address of --listen, open: the sockets on which connections arrive. Not thread-safe.
#ifndef GRADCLIP_SERVER_NET_LISTENER_H_
#define GRADCLIP_SERVER_NET_LISTENER_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/net/file_descriptor.h"
#include "server/net/unix_socket.h"

namespace gradclip {

class Listener {
 public:
  // "HOST:PORT", "[IPV6]:PORT" or "unix:PATH". A name is listened to at each of its addresses, with
  // one port. `unix_mode` is the rights of a unix socket's file; none: as umask says. UNAVAILABLE,
  // "cannot listen on ADDRESS: ...", where the address is taken, not this machine's or not
  // permitted, or the name has none; it names `flag`, which gave the address.
  static absl::StatusOr<Listener> Open(const std::string& address, std::optional<mode_t> unix_mode,
                                       absl::string_view flag = "--listen");

  // As given, with the port really bound.
  const std::string& address() const { return address_; }

  bool is_unix() const { return unix_.has_value(); }

  // Listening, and not waiting.
  std::vector<int> sockets() const;

 private:
  std::string address_;
  std::optional<ListeningSocket> unix_;
  std::vector<FileDescriptor> tcp_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_LISTENER_H_
