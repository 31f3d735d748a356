#include "client/gradclip/connection.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/gradclip/socket.h"
#include "client/gradclip/tls_context.h"
#include "client/gradclip/tls_session.h"
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
  // A server that hangs while its host lives is found out in 80 s, where it hangs within two
  // minutes of its last data: gRPC sends no more than two pings without any, and a server with
  // default settings takes more for abuse. A host that is gone is found out by the socket.
  settings.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  settings.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  return settings;
}

// What HTTP/2 calls the server.
std::string Authority(const ServerAddress& address, const TlsOptions* tls) {
  if (!address.path.empty()) return "localhost";
  if (tls != nullptr && !tls->server_name.empty()) return tls->server_name;
  const bool ipv6 = absl::StrContains(address.host, ':');
  return absl::StrCat(ipv6 ? "[" : "", address.host, ipv6 ? "]:" : ":", address.port);
}

bool PeerIsOnThisHost(int socket) {
  sockaddr_storage peer = {};
  socklen_t size = sizeof(peer);
  return getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && IsOnThisHost(peer);
}

absl::Status SocketError(int error) {
  return absl::UnavailableError(absl::StrCat("can't open a socket: ", std::strerror(error)));
}

// What is left open where making a connection fails.
struct Descriptors {
  int grpc = -1;
  int second = -1;
  ~Descriptors() {
    for (const int one : {grpc, second}) {
      if (one >= 0) close(one);
    }
  }
};

// Shakes hands over `network`, which it takes, and puts a tunnel behind a socket for gRPC.
absl::StatusOr<std::unique_ptr<TlsTunnel>> OpenTunnel(int network, const std::string& host,
                                                      const TlsOptions& tls, TlsContext context,
                                                      absl::Time deadline, int& grpc) {
  absl::StatusOr<std::unique_ptr<TlsSession>> session =
      TlsSession::Open(network, host, tls, std::move(context), deadline);
  if (!session.ok()) return session.status();
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
    return SocketError(errno);
  }
  grpc = pair[0];
  return TlsTunnel::Start(*std::move(session), pair[1]);
}

// Whether the server sent less than the least that HTTP/2 begins with, a frame of SETTINGS. False
// where the system does not tell.
bool SaidNothing(int socket) {
  constexpr uint64_t kLeastBytes = 9;
  tcp_info info = {};
  socklen_t size = sizeof(info);
  constexpr size_t kNeeded = offsetof(tcp_info, tcpi_bytes_received) + sizeof(uint64_t);
  return getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && size >= kNeeded &&
         info.tcpi_bytes_acked > 0 && info.tcpi_bytes_received < kLeastBytes;
}

// Whether the server has announced that it will close the connection (GOAWAY), which gRPC has not
// read yet: on an idle connection only frames of control wait, each whole. True also for what are
// no such frames.
bool IsToldToGo(int socket) {
  constexpr size_t kHeader = 9;  // length (3 bytes), type, flags, stream (4)
  constexpr uint8_t kGoAway = 7;
  constexpr uint8_t kLastType = 9;
  std::array<uint8_t, 4096> bytes;
  const ssize_t got = recv(socket, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  size_t at = 0;
  while (got > 0 && at + kHeader <= static_cast<size_t>(got)) {
    const uint8_t* const frame = bytes.data() + at;
    if (frame[3] == kGoAway || frame[3] > kLastType) return true;
    at += kHeader + (size_t{frame[0]} << 16 | size_t{frame[1]} << 8 | frame[2]);
  }
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const std::string& address,
                                                             absl::Time deadline,
                                                             const std::optional<TlsOptions>& tls) {
  const absl::StatusOr<ServerAddress> parsed = ParseServerAddress(address);
  if (!parsed.ok()) return parsed.status();
  const TlsOptions* const used = tls.has_value() && parsed->path.empty() ? &*tls : nullptr;
  TlsContext context;
  if (used != nullptr) {
    absl::StatusOr<TlsContext> made = MakeTlsContext(*used);
    if (!made.ok()) return made.status();
    context = *std::move(made);
  }
  const absl::StatusOr<int> socket = ConnectSocket(*parsed, deadline);
  if (!socket.ok()) return socket.status();
  std::unique_ptr<TlsTunnel> tunnel;
  Descriptors open;  // closed before the tunnel, which waits for that, goes
  if (used == nullptr) {
    open.grpc = *socket;
  } else {
    absl::StatusOr<std::unique_ptr<TlsTunnel>> opened =
        OpenTunnel(*socket, parsed->host, *used, std::move(context), deadline, open.grpc);
    if (!opened.ok()) return opened.status();
    tunnel = *std::move(opened);
  }
  open.second = fcntl(open.grpc, F_DUPFD_CLOEXEC, 0);
  if (open.second < 0) return SocketError(errno);
  return std::unique_ptr<Connection>(new Connection(address, std::exchange(open.grpc, -1),
                                                    std::exchange(open.second, -1),
                                                    Authority(*parsed, used), std::move(tunnel)));
}

Connection::Connection(std::string address, int socket, int second, const std::string& authority,
                       std::unique_ptr<TlsTunnel> tunnel)
    : address_(std::move(address)),
      socket_(second),
      is_private_(tunnel != nullptr || PeerIsOnThisHost(second)),
      tunnel_(std::move(tunnel)),
      channel_(
          grpc::CreateCustomInsecureChannelFromFd(authority, socket, ChannelSettings(authority))) {}

Connection::~Connection() {
  channel_.reset();
  if (tunnel_ != nullptr) {
    Cut();
    tunnel_.reset();
  }
  close(socket_);
}

bool Connection::Alive() const {
  pollfd asked = {.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return poll(&asked, 1, 0) == 0 && (tunnel_ == nullptr || tunnel_->Alive()) &&
         !IsToldToGo(socket_);
}

void Connection::Cut() {
  shutdown(socket_, SHUT_RDWR);
}

absl::Status Connection::Explain(const absl::Status& status) const {
  if (!absl::IsUnavailable(status)) return status;
  if (tunnel_ != nullptr) {
    absl::Status failure = tunnel_->Failure();
    return failure.ok() ? status : failure;
  }
  if (!SaidNothing(socket_)) return status;
  return absl::UnavailableError(
      absl::StrCat(status.message(),
                   "; the server closed the connection without a word of HTTP/2: if it wants TLS, "
                   "set ClientOptions::tls (--tls)"));
}

}  // namespace gradclip
