#include "client/gradclip/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/gradclip/socket.h"
#include "grpcpp/create_channel_posix.h"
#include "grpcpp/support/channel_arguments.h"

namespace gradclip {
namespace {

// As many as a client's threads usually are.
constexpr size_t kMaxIdle = 8;

grpc::ChannelArguments ChannelSettings(const std::string& authority) {
  grpc::ChannelArguments settings;
  settings.SetString(GRPC_ARG_DEFAULT_AUTHORITY, authority);
  settings.SetMaxReceiveMessageSize(-1);
  settings.SetMaxSendMessageSize(-1);
  settings.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  // A server that hangs while its host lives is found out in 80 s, where it hangs within two
  // minutes of its last data: gRPC sends no more than two pings without any, and a server with
  // default settings takes more for abuse. A host that is gone is found out by the socket.
  settings.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  settings.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  return settings;
}

// What HTTP/2 calls the server.
std::string Authority(const ServerAddress& address) {
  if (!address.path.empty()) return "localhost";
  const bool ipv6 = absl::StrContains(address.host, ':');
  return absl::StrCat(ipv6 ? "[" : "", address.host, ipv6 ? "]:" : ":", address.port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const std::string& address,
                                                             absl::Time deadline) {
  const absl::StatusOr<ServerAddress> parsed = ParseServerAddress(address);
  if (!parsed.ok()) return parsed.status();
  const absl::StatusOr<int> socket = ConnectSocket(*parsed, deadline);
  if (!socket.ok()) return socket.status();
  const int second = fcntl(*socket, F_DUPFD_CLOEXEC, 0);
  if (second < 0) {
    const int error = errno;
    close(*socket);
    return absl::UnavailableError(absl::StrCat("can't open a socket: ", std::strerror(error)));
  }
  return std::unique_ptr<Connection>(new Connection(*socket, second, Authority(*parsed)));
}

Connection::Connection(int socket, int second, const std::string& authority)
    : socket_(second),
      channel_(
          grpc::CreateCustomInsecureChannelFromFd(authority, socket, ChannelSettings(authority))) {}

Connection::~Connection() {
  channel_.reset();
  close(socket_);
}

bool Connection::Alive() const {
  pollfd asked = {.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return poll(&asked, 1, 0) == 0;
}

void Connection::Cut() {
  shutdown(socket_, SHUT_RDWR);
}

absl::StatusOr<std::unique_ptr<Connection>> ConnectionPool::Take(absl::Time deadline) {
  while (true) {
    std::unique_ptr<Connection> connection;  // destroyed, where it is dead, without the lock
    {
      std::lock_guard lock(mutex_);
      if (idle_.empty()) break;
      connection = std::move(idle_.back());
      idle_.pop_back();
    }
    if (connection->Alive()) return connection;
  }
  return Connection::Open(address_, deadline);
}

void ConnectionPool::GiveBack(std::unique_ptr<Connection> connection) {
  std::lock_guard lock(mutex_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(connection));
}

void ConnectionPool::Clear() {
  std::vector<std::unique_ptr<Connection>> closed;  // after the lock is released
  std::lock_guard lock(mutex_);
  closed.swap(idle_);
}

}  // namespace gradclip
