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

grpc::ChannelArguments ChannelSettings(const std::string& authority) {
  grpc::ChannelArguments settings;
  settings.SetString(GRPC_ARG_DEFAULT_AUTHORITY, authority);
  settings.SetMaxReceiveMessageSize(-1);
  settings.SetMaxSendMessageSize(-1);
  settings.SetCompressionAlgorithm(GRPC_COMPRESS_NONE);
  // A server that died without a word is found out in 80 s where a call waits for its answer. More
  // often would be taken for abuse by a gRPC server with default settings.
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

absl::StatusOr<std::shared_ptr<Connection>> Connection::Open(const std::string& address,
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
  return std::shared_ptr<Connection>(new Connection(*socket, second, Authority(*parsed)));
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

absl::StatusOr<std::shared_ptr<Connection>> SharedConnection::Get(absl::Time deadline) {
  {
    std::unique_lock lock(mutex_);
    const auto idle = [this] { return !connecting_; };
    if (!idle_.wait_until(lock, absl::ToChronoTime(deadline), idle)) {
      return absl::DeadlineExceededError("not connected before the call's timeout");
    }
    if (current_ != nullptr && current_->Alive()) return current_;
    current_ = nullptr;
    connecting_ = true;
  }
  absl::StatusOr<std::shared_ptr<Connection>> opened = Connection::Open(address_, deadline);
  std::lock_guard lock(mutex_);
  connecting_ = false;
  idle_.notify_all();
  if (opened.ok()) current_ = *opened;
  return opened;
}

void SharedConnection::Drop(const std::shared_ptr<Connection>& connection) {
  std::shared_ptr<Connection> dropped;  // destroyed after the lock is released
  std::lock_guard lock(mutex_);
  if (current_ == connection) dropped = std::move(current_);
}

}  // namespace gradclip
