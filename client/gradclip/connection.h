// One connection to a server, with a socket of our own under gRPC's channel: a call that has to end
// while the server does not read can only be ended by cutting the connection, because gRPC keeps a
// write (and the caller's memory under it) until the socket has taken it or failed. For that to
// harm nobody, a connection carries one call at a time. Owning the socket also names the reason
// where a server can't be reached, and leaves out a channel's own waiting between its tries. TLS is
// ours too, then: see tls_tunnel.h.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_
#define GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/tls_tunnel.h"
#include "gradclip/client.h"
#include "grpcpp/channel.h"

namespace gradclip {

class Connection {
 public:
  // Connects to `address`: "host:port", "[ipv6]:port", "unix:path", "unix-abstract:name"; "dns:",
  // "ipv4:" and "ipv6:" may stand before the first two. INVALID_ARGUMENT where it can't be read,
  // UNAVAILABLE with the system's reason where nobody answers, DEADLINE_EXCEEDED at the deadline
  // (which does not end the system's look-up of a host name). With `tls`, which is for TCP only,
  // also errors as MakeTlsContext() and TlsSession::Open().
  static absl::StatusOr<std::unique_ptr<Connection>> Open(
      const std::string& address, absl::Time deadline,
      const std::optional<TlsOptions>& tls = std::nullopt);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // As Open() was given it.
  const std::string& address() const { return address_; }

  // Whether nobody on a network can listen: it is encrypted, or ends on this host.
  bool IsPrivate() const { return is_private_; }

  // The bearer token of the call that begins next; empty: none.
  const std::string& token() const { return token_; }
  void set_token(std::string token) { token_ = std::move(token); }

  // The server's instance (ServerInfo), once it was asked for.
  const std::optional<std::string>& instance() const { return instance_; }
  void set_instance(std::string instance) { instance_ = std::move(instance); }

  // False once either side has closed it, or the server has announced that it will. REQUIRES: no
  // call is under way.
  bool Alive() const;

  // Closes it both ways: the call over it ends, and gRPC lets go of all it wanted to send.
  void Cut();

  // The status that a call over it ended with; where that is UNAVAILABLE, with what is known of the
  // connection that gRPC does not know.
  absl::Status Explain(const absl::Status& status) const;

 private:
  // Two descriptors of one socket: gRPC takes the first. `tunnel`: from its other end on, or null.
  Connection(std::string address, int socket, int second, const std::string& authority,
             std::unique_ptr<TlsTunnel> tunnel);

  const std::string address_;
  const int socket_;
  const bool is_private_;
  std::string token_;
  std::optional<std::string> instance_;
  std::unique_ptr<TlsTunnel> tunnel_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_
