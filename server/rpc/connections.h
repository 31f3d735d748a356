// The way of accepted connections into gRPC. Context: gRPC 1.51 names the peer of a unix socket as
// that named its end, mostly "unix:", and has no SO_PEERCRED. Decision: every user of a unix socket
// gets an entrance to gRPC of its own, whose credentials write the user into the authentication
// context of its calls. Consequence: there are as many entrances as users can be told apart, made
// before the server starts.
#ifndef GRADCLIP_SERVER_RPC_CONNECTIONS_H_
#define GRADCLIP_SERVER_RPC_CONNECTIONS_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/net/acceptor.h"
#include "server/net/file_descriptor.h"
#include "server/options/options.h"

namespace gradclip {

// Peer::host of a call that came over a unix socket, or none. Thread-safe.
std::optional<std::string> UnixUserOf(const grpc::ServerContextBase& context);

// For one thread.
class Connections {
 public:
  // Adds the entrances: to `tcp` for all of TCP, and, with unix_sockets, those of kMaxUnixUsers
  // users and one of kUnlistedUsers.
  Connections(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> tcp,
              bool unix_sockets);

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
  grpc::experimental::ExternalConnectionAcceptor* EntranceOf(const std::string& user);

  const std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> tcp_;
  std::vector<UserEntrance> user_entrances_;   // the first: of kUnlistedUsers
  std::map<std::string, size_t> entrance_of_;  // of user_entrances_, once another user has come
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CONNECTIONS_H_
