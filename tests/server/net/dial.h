// Connects to where a server listens, with sockets alone.
#ifndef GRADCLIP_TESTS_SERVER_NET_DIAL_H_
#define GRADCLIP_TESTS_SERVER_NET_DIAL_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "server/net/file_descriptor.h"

namespace gradclip {

// To "127.0.0.1:PORT", "[::1]:PORT" or "unix:PATH". Waits in what it does; empty where nobody
// listens.
inline FileDescriptor Dial(const std::string& address) {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  uint32_t port = 0;
  static_cast<void>(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  if (absl::StartsWith(address, "unix:")) {
    auto& path = reinterpret_cast<sockaddr_un&>(storage);
    path.sun_family = AF_UNIX;
    address.copy(path.sun_path, sizeof(path.sun_path) - 1, 5);
    size = sizeof(path);
  } else if (absl::StartsWith(address, "[")) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    v6.sin6_family = AF_INET6;
    v6.sin6_addr = in6addr_loopback;
    v6.sin6_port = htons(static_cast<in_port_t>(port));
    size = sizeof(v6);
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    v4.sin_family = AF_INET;
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    v4.sin_port = htons(static_cast<in_port_t>(port));
    size = sizeof(v4);
  }
  FileDescriptor connection(socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // So that it does not grow while it is read, and take all that is left.
  const int room = 1 << 16;
  setsockopt(connection.get(), SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
  if (connect(connection.get(), reinterpret_cast<const sockaddr*>(&storage), size) != 0) return {};
  return connection;
}

// Whether the other side has closed the connection, or does so within ten seconds of silence.
inline bool IsClosedByPeer(const FileDescriptor& connection) {
  const timeval limit = {.tv_sec = 10, .tv_usec = 0};
  setsockopt(connection.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  char bytes[256];
  ssize_t got = 0;
  do {
    got = recv(connection.get(), bytes, sizeof(bytes), 0);
  } while (got > 0);
  return got == 0 || (got < 0 && errno == ECONNRESET);
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_NET_DIAL_H_
