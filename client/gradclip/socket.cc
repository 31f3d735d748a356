#include "client/gradclip/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace gradclip {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(20);

// A host that vanished without a word is found out in half a minute: by what was sent and is not
// acknowledged, or, where a call only waits, by the system's probes. Once probes are out, the user
// timeout ends the connection too, so that together they have to fit into it.
constexpr int kUserTimeoutMilliseconds = 30000;
constexpr int kProbeAfterSeconds = 10;
constexpr int kProbeIntervalSeconds = 5;
constexpr int kProbes = 4;

absl::Status SystemError(absl::string_view what, int error) {
  return absl::UnavailableError(
      absl::StrCat(what, ": ", std::strerror(error),
                   "; check the address, and that gradclip-server runs and listens there"));
}

// Waits for a connect() in progress; the socket's error, or ETIMEDOUT.
int AwaitConnected(int socket, absl::Time deadline) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd waited = {.fd = socket, .events = POLLOUT, .revents = 0};
    const int ready = poll(&waited, 1, static_cast<int>(left / absl::Milliseconds(1)) + 1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return errno;
    if (ready > 0) break;
    if (absl::Now() >= deadline) return ETIMEDOUT;
  }
  int error = 0;
  socklen_t size = sizeof(error);
  if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

void SetOption(int socket, int level, int option, int value) {
  setsockopt(socket, level, option, &value, sizeof(value));
}

absl::StatusOr<int> ConnectTo(int family, const sockaddr* address, socklen_t size,
                              absl::Time deadline) {
  const int connected = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (connected < 0) return SystemError("can't open a socket", errno);
  absl::Cleanup close_it = [connected] { close(connected); };
  if (connect(connected, address, size) != 0) {
    const int error = errno == EINPROGRESS ? AwaitConnected(connected, deadline) : errno;
    if (error != 0) return SystemError("can't connect", error);
  }
  if (family != AF_UNIX) {
    SetOption(connected, IPPROTO_TCP, TCP_NODELAY, 1);
    SetOption(connected, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMilliseconds);
    SetOption(connected, IPPROTO_TCP, TCP_KEEPIDLE, kProbeAfterSeconds);
    SetOption(connected, IPPROTO_TCP, TCP_KEEPINTVL, kProbeIntervalSeconds);
    SetOption(connected, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
    SetOption(connected, SOL_SOCKET, SO_KEEPALIVE, 1);
  }
  std::move(close_it).Cancel();
  return connected;
}

absl::StatusOr<int> ConnectUnix(const std::string& path, absl::Time deadline) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the path of the unix socket has ", path.size(),
                                                   " bytes; the system allows ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::copy(path.begin(), path.end(), address.sun_path);
  // An abstract name has no terminating NUL.
  const size_t size =
      offsetof(sockaddr_un, sun_path) + path.size() + (path.front() == '\0' ? 0 : 1);
  return ConnectTo(AF_UNIX, reinterpret_cast<const sockaddr*>(&address),
                   static_cast<socklen_t>(size), deadline);
}

}  // namespace

absl::StatusOr<ServerAddress> ParseServerAddress(absl::string_view address) {
  const auto unreadable = [address] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is no address of a server: write host:port or unix:path"));
  };
  ServerAddress parsed;
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix-abstract:")) {
    parsed.path = absl::StrCat(absl::string_view("\0", 1), rest);
    return parsed;
  }
  if (absl::ConsumePrefix(&rest, "unix:")) {
    if (absl::StartsWith(rest, "///")) rest.remove_prefix(2);
    if (rest.empty()) return unreadable();
    parsed.path = std::string(rest);
    return parsed;
  }
  if (!absl::ConsumePrefix(&rest, "dns:///") && !absl::ConsumePrefix(&rest, "dns:") &&
      !absl::ConsumePrefix(&rest, "ipv4:")) {
    absl::ConsumePrefix(&rest, "ipv6:");
  }
  const size_t colon = rest.rfind(':');
  if (colon == absl::string_view::npos) return unreadable();
  absl::string_view host = rest.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) {
    if (!absl::ConsumeSuffix(&host, "]")) return unreadable();
  } else if (absl::StrContains(host, ':')) {
    return unreadable();
  }
  parsed.host = std::string(host);
  parsed.port = std::string(rest.substr(colon + 1));
  if (parsed.host.empty() || parsed.port.empty()) return unreadable();
  int port = 0;
  if (!absl::SimpleAtoi(parsed.port, &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" has the port ", parsed.port,
                                                   "; a port is a number from 1 to 65535"));
  }
  return parsed;
}

absl::StatusOr<int> ConnectSocket(const ServerAddress& address, absl::Time deadline) {
  const absl::Time limit = std::min(deadline, absl::Now() + kConnectTimeout);
  absl::StatusOr<int> connected = absl::UnavailableError("the host has no address");
  if (!address.path.empty()) {
    connected = ConnectUnix(address.path, limit);
  } else {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    addrinfo* found = nullptr;
    if (const int error = getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &found)) {
      return absl::UnavailableError(
          absl::StrCat("can't look up the host \"", address.host, "\": ", gai_strerror(error)));
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> free_it(found, &freeaddrinfo);
    for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
      connected = ConnectTo(one->ai_family, one->ai_addr, one->ai_addrlen, limit);
      if (connected.ok()) break;
    }
  }
  if (!connected.ok() && absl::Now() >= deadline) {
    return absl::DeadlineExceededError("not connected before the call's timeout");
  }
  return connected;
}

bool IsOnThisHost(const sockaddr_storage& address) {
  switch (address.ss_family) {
    case AF_UNIX:
      return true;
    case AF_INET:
      return ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24 == 127;
    case AF_INET6: {
      const in6_addr& host = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
      return IN6_IS_ADDR_LOOPBACK(&host) ||
             (IN6_IS_ADDR_V4MAPPED(&host) && host.s6_addr[12] == 127);
    }
    default:
      return false;
  }
}

}  // namespace gradclip
