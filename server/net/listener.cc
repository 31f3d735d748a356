#include "server/net/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace gradclip {
namespace {

// With port 0 the first of a name's addresses gets a free port, which another may have taken at the
// second.
constexpr int kTriesForOnePort = 16;

void SetPort(sockaddr_storage& address, in_port_t port) {
  // At the same place for both families.
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  reinterpret_cast<sockaddr_in&>(address).sin_port = port;
}

in_port_t PortOf(const sockaddr_storage& address) {
  return reinterpret_cast<const sockaddr_in&>(address).sin_port;
}

// `address` gets the port really bound. An empty one, with errno set, where it can't be had.
FileDescriptor OpenTcp(sockaddr_storage& address, socklen_t size) {
  FileDescriptor opened(
      socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!opened.ok()) return opened;
  const int on = 1;
  const int off = 0;
  // Connections of a server that has just stopped do not keep the next one away.
  setsockopt(opened.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Accepted connections inherit it: a call's messages are small or many, and none may wait.
  setsockopt(opened.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (address.ss_family == AF_INET6) {
    setsockopt(opened.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (bind(opened.get(), any, size) != 0 || listen(opened.get(), SOMAXCONN) != 0 ||
      getsockname(opened.get(), any, &size) != 0) {
    return {};
  }
  return opened;
}

struct Found {
  sockaddr_storage address = {};
  socklen_t size = 0;
};

// The addresses of "HOST" or "[IPV6]". UNAVAILABLE: why there are none.
absl::StatusOr<std::vector<Found>> Resolve(absl::string_view host, const std::string& port) {
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int failed = getaddrinfo(std::string(host).c_str(), port.c_str(), &hints, &list);
  if (failed != 0) return absl::UnavailableError(gai_strerror(failed));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  std::vector<Found> all;
  for (; list != nullptr; list = list->ai_next) {
    Found& found = all.emplace_back();
    memcpy(&found.address, list->ai_addr, list->ai_addrlen);
    found.size = list->ai_addrlen;
  }
  return all;
}

// Of a name's addresses this machine may lack one's whole family.
bool IsNotHere(int error) {
  return error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
}

// 0, or the error of the first address that can't be had.
int OpenAll(std::vector<Found> all, std::vector<FileDescriptor>& opened, in_port_t& port) {
  opened.clear();
  int not_here = 0;
  for (Found& found : all) {
    if (!opened.empty()) SetPort(found.address, port);
    FileDescriptor one = OpenTcp(found.address, found.size);
    if (one.ok()) {
      port = PortOf(found.address);
      opened.push_back(std::move(one));
    } else if (IsNotHere(errno)) {
      not_here = errno;
    } else {
      return errno;
    }
  }
  return opened.empty() ? not_here : 0;
}

}  // namespace

absl::StatusOr<Listener> Listener::Open(const std::string& address, std::optional<mode_t> unix_mode,
                                        absl::string_view flag) {
  Listener listener;
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    absl::ConsumePrefix(&rest, "//");
    const std::string path(rest);
    absl::StatusOr<ListeningSocket> socket =
        ListeningSocket::Listen(path, unix_mode, std::string(flag));
    if (!socket.ok()) {
      const std::string message(socket.status().message());
      absl::string_view why = message;
      absl::ConsumePrefix(&why, absl::StrCat("cannot listen on ", path));
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address, why));
    }
    listener.address_ = address;
    listener.unix_.emplace(*std::move(socket));
    return listener;
  }

  const auto refused = [&](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why,
                                               "; choose another address with ", flag));
  };
  const size_t colon = address.rfind(':');
  const std::string port = address.substr(colon + 1);
  const absl::StatusOr<std::vector<Found>> all = Resolve(rest.substr(0, colon), port);
  if (!all.ok()) return refused(all.status().message());
  in_port_t bound = 0;
  int error = EADDRINUSE;
  for (int tries = port == "0" ? kTriesForOnePort : 1; error == EADDRINUSE && tries > 0; --tries) {
    error = OpenAll(*all, listener.tcp_, bound);
  }
  if (error == EADDRINUSE) return refused("another process listens there");
  if (error == EADDRNOTAVAIL) return refused("it is not an address of this machine");
  if (error != 0) return refused(strerror(error));
  listener.address_ = absl::StrCat(address.substr(0, colon), ":", ntohs(bound));
  return listener;
}

std::vector<int> Listener::sockets() const {
  std::vector<int> numbers;
  if (unix_.has_value()) numbers.push_back(unix_->get());
  for (const FileDescriptor& socket : tcp_) numbers.push_back(socket.get());
  return numbers;
}

}  // namespace gradclip
