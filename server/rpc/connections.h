// The way of accepted connections into gRPC. Context: gRPC 1.51 names the peer of a unix socket as
// that named its end, mostly "unix:", and has no SO_PEERCRED. Decision: every user of a unix socket
// gets an entrance to gRPC of its own, whose credentials write the user into the authentication
// context of its calls. Consequence: there are as many entrances as users can be told apart, made
// before the server starts.
#ifndef GRADCLIP_SERVER_RPC_CONNECTIONS_H_
#define GRADCLIP_SERVER_RPC_CONNECTIONS_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "server/net/acceptor.h"
#include "server/net/file_descriptor.h"
#include "server/options/options.h"

namespace gradclip {

// Which users may call over unix sockets; none: whoever can connect.
using AllowedUids = std::optional<std::vector<uid_t>>;

// Who calls over a unix socket.
struct UnixUser {
  bool allowed = false;
  uid_t uid = 0;  // where allowed
};
// None for a call that did not come over a unix socket. Thread-safe.
std::optional<UnixUser> UnixUserOf(const grpc::ServerContextBase& context);

// For one thread.
class Connections {
 public:
  // Adds the entrances: to `tcp` for all of TCP, and, with unix_sockets, those of kMaxUnixUsers
  // users and one that those who may not call share.
  Connections(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> tcp,
              bool unix_sockets, AllowedUids allowed_uids);

  // Hands a connection to the server that was built, which is running. False, and the connection
  // is closed, where it comes from one user more than can be told apart.
  [[nodiscard]] bool Take(FileDescriptor connection, const Peer& peer);

 private:
  class NameUser;
  struct UserEntrance {
    std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
    std::shared_ptr<NameUser> name;
  };

  // Null where there is none left.
  grpc::experimental::ExternalConnectionAcceptor* EntranceOf(uid_t uid);

  const AllowedUids allowed_uids_;
  const std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> tcp_;
  std::vector<UserEntrance> user_entrances_;  // the first: for those who may not call
  std::map<uid_t, size_t> entrance_of_;       // of user_entrances_, once a user has come
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CONNECTIONS_H_
