// One connection to a server, with a socket of our own under gRPC's channel: a call that has to end
// while the server does not read can only be ended by cutting the connection, because gRPC keeps a
// write (and the caller's memory under it) until the socket has taken it or failed. Owning the
// socket also names the reason where a server can't be reached, and leaves out a channel's own
// waiting between its tries.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_
#define GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"

namespace gradclip {

class Connection {
 public:
  // Connects to `address`: "host:port", "[ipv6]:port", "unix:path", "unix-abstract:name"; "dns:",
  // "ipv4:" and "ipv6:" may stand before the first two. INVALID_ARGUMENT where it can't be read,
  // UNAVAILABLE with the system's reason where nobody answers, DEADLINE_EXCEEDED at the deadline
  // (which does not end the system's look-up of a host name).
  static absl::StatusOr<std::shared_ptr<Connection>> Open(const std::string& address,
                                                          absl::Time deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // False once either side has closed it.
  bool Alive() const;

  // Closes it both ways: every call over it ends, and gRPC lets go of all it wanted to send.
  void Cut();

 private:
  // Two descriptors of one socket: gRPC takes the first.
  Connection(int socket, int second, const std::string& authority);

  const int socket_;
  std::shared_ptr<grpc::Channel> channel_;
};

// The connection that the calls of one client share, made anew where it was lost.
class SharedConnection {
 public:
  explicit SharedConnection(std::string address) : address_(std::move(address)) {}

  const std::string& address() const { return address_; }

  // The live connection, or a new one. Errors as Connection::Open.
  absl::StatusOr<std::shared_ptr<Connection>> Get(absl::Time deadline);

  // `connection` is not to be given to further calls.
  void Drop(const std::shared_ptr<Connection>& connection);

 private:
  const std::string address_;
  std::mutex mutex_;
  std::condition_variable idle_;
  // Guarded by mutex_.
  bool connecting_ = false;
  std::shared_ptr<Connection> current_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CONNECTION_H_
