#include "server/net/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace gradclip {
namespace {

using std::chrono::steady_clock;

// How long nobody is accepted once the process has run out of descriptors: the ones who wait would
// have the thread run in circles.
constexpr int kOutOfDescriptorsPauseMs = 100;

// Accepted in one go, so that every listener gets its turn.
constexpr int kAcceptedAtOnce = 16;

constexpr std::chrono::seconds kBetweenLines{1};

// Looking which connections are still open costs some 0.3 us each: not for every one of a flood.
constexpr std::chrono::milliseconds kBetweenSweeps{5};

constexpr std::chrono::milliseconds kLookEvery{5};

// Of a unix socket. The kernel counts 768 bytes for a write of a few, such as a PING's answer, and
// an idle client of ours was seen to leave two of them: this is ten. gRPC reads at least 8 KiB at
// once, and what is read first is not lost with the connection.
constexpr int kInOneRead = 8192;

// One IPv6 host has a network of its own, of 2^64 addresses.
std::string Ipv6Host(in6_addr address) {
  std::fill(std::begin(address.s6_addr) + 8, std::end(address.s6_addr), 0);
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(AF_INET6, &address, text, sizeof(text));
  return absl::StrCat(text, "/64");
}

Peer Ipv4Peer(const in_addr& address, in_port_t port) {
  char text[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &address, text, sizeof(text));
  return {.host = text, .address = absl::StrCat("ipv4:", text, ":", ntohs(port))};
}

Peer TcpPeer(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return Ipv4Peer(v4.sin_addr, v4.sin_port);
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    in_addr v4 = {};
    memcpy(&v4, v6.sin6_addr.s6_addr + 12, sizeof(v4));
    return Ipv4Peer(v4, v6.sin6_port);
  }
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
  const std::string scope = v6.sin6_scope_id == 0 ? "" : absl::StrCat("%25", v6.sin6_scope_id);
  return {.host = Ipv6Host(v6.sin6_addr),
          .address = absl::StrCat("ipv6:%5B", text, scope, "%5D:", ntohs(v6.sin6_port))};
}

ino_t InodeOf(int number) {
  struct stat file = {};
  return fstat(number, &file) == 0 && S_ISSOCK(file.st_mode) ? file.st_ino : 0;
}

}  // namespace

std::string HostOf(absl::string_view grpc_peer) {
  absl::string_view rest = grpc_peer;
  if (absl::ConsumePrefix(&rest, "ipv4:")) return std::string(rest.substr(0, rest.rfind(':')));
  if (absl::ConsumePrefix(&rest, "ipv6:%5B")) {
    const std::string text(rest.substr(0, rest.find('%')));
    in6_addr address = {};
    if (inet_pton(AF_INET6, text.c_str(), &address) == 1) return Ipv6Host(address);
  }
  return std::string(grpc_peer);
}

Acceptor::Acceptor(std::vector<Listener> listeners, Limits limits, Take take, Log& log,
                   LimitHits& hits)
    : limits_(std::move(limits)),
      take_(std::move(take)),
      log_(log),
      hits_(hits),
      listeners_(std::move(listeners)) {}

absl::Status Acceptor::Start() {
  if (!stop_.ok()) return absl::UnavailableError("cannot listen: there are too many open files");
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

Acceptor::~Acceptor() {
  Close();
}

void Acceptor::Close() {
  if (thread_.joinable()) {
    stop_.Send();
    thread_.join();
  }
  listeners_.clear();
}

void Acceptor::Run() {
  std::vector<pollfd> polled = {{stop_.get(), POLLIN, 0}};
  std::vector<bool> is_unix = {false};
  for (const Listener& listener : listeners_) {
    for (const int socket : listener.sockets()) {
      polled.push_back({socket, POLLIN, 0});
      is_unix.push_back(listener.is_unix());
    }
  }
  while (true) {
    if (poll(polled.data(), polled.size(), -1) < 0) continue;  // interrupted
    if (polled[0].revents != 0) return;
    bool pause = false;
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents != 0) pause |= !AcceptSome(polled[i].fd, is_unix[i]);
    }
    if (pause && poll(polled.data(), 1, kOutOfDescriptorsPauseMs) > 0) return;
  }
}

// False where the system has nothing to accept with.
bool Acceptor::AcceptSome(int listener, bool is_unix) {
  for (int i = 0; i < kAcceptedAtOnce; ++i) {
    sockaddr_storage address = {};
    socklen_t size = sizeof(address);
    FileDescriptor connection(accept4(listener, reinterpret_cast<sockaddr*>(&address), &size,
                                      SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!connection.ok()) {
      if (errno == EINTR) continue;
      const bool exhausted =
          errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
      // One line where it begins, not one for each try.
      if (exhausted && !std::exchange(out_of_descriptors_, true)) {
        log_.Warning("cannot accept connections for now", {{"reason", strerror(errno)}});
      }
      // Else nobody is left, or one has gone before it was its turn.
      return !exhausted;
    }
    out_of_descriptors_ = false;
    if (!is_unix) {
      Admit(std::move(connection), TcpPeer(address));
      continue;
    }
    ucred credentials = {};
    size = sizeof(credentials);
    if (getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) continue;
    Admit(std::move(connection), {.host = UserAsHost(credentials.uid), .uid = credentials.uid});
  }
  return true;
}

std::string Acceptor::UserAsHost(uid_t uid) const {
  const std::vector<uid_t>& listed = limits_.listed_uids;
  const bool counts =
      listed.empty() || std::find(listed.begin(), listed.end(), uid) != listed.end();
  return counts ? absl::StrCat(kUserPrefix, uid) : std::string(kUnlistedUsers);
}

void Acceptor::Admit(FileDescriptor connection, Peer peer) {
  if (const absl::string_view limit = LimitReached(peer.host); !limit.empty()) {
    hits_.Count(limit);
    const auto now = steady_clock::now();
    if (now < quiet_until_) return;
    quiet_until_ = now + kBetweenLines;
    log_.Warning("connection refused: there are as many as may be",
                 {{"peer", peer.host}, {"limit", absl::StrCat("--", limit)}});
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    connections_.push_back({connection.get(), InodeOf(connection.get()), peer});
    ++count_of_host_[peer.host];
  }
  take_(std::move(connection), peer);
}

absl::string_view Acceptor::LimitReached(const std::string& host) {
  const std::lock_guard lock(mutex_);
  const auto reached = [&]() -> absl::string_view {
    if (connections_.size() >= limits_.connections) return "max-connections";
    const auto found = count_of_host_.find(host);
    return found != count_of_host_.end() && found->second >= limits_.connections_per_peer
               ? "max-connections-per-peer"
               : "";
  };
  // What is counted may have been closed, which nobody says.
  if (reached().empty()) return "";
  Sweep();
  return reached();
}

void Acceptor::Sweep() {
  const auto now = steady_clock::now();
  if (now < swept_ + kBetweenSweeps) return;
  swept_ = now;
  std::erase_if(connections_, [this](const Connection& connection) {
    if (IsOpen(connection)) return false;
    const auto found = count_of_host_.find(connection.peer.host);
    if (--found->second == 0) count_of_host_.erase(found);
    return true;
  });
}

bool Acceptor::IsOpen(const Connection& connection) {
  return InodeOf(connection.number) == connection.inode;
}

uint64_t Acceptor::connections() const {
  const std::lock_guard lock(mutex_);
  return static_cast<uint64_t>(std::count_if(connections_.begin(), connections_.end(), IsOpen));
}

void Acceptor::Cut(absl::string_view address) const {
  const std::lock_guard lock(mutex_);
  for (const Connection& connection : connections_) {
    if (connection.peer.address != address) continue;
    // What is looked at has to be what is shut down, though the number may change hands meanwhile.
    const FileDescriptor held(fcntl(connection.number, F_DUPFD_CLOEXEC, 0));
    if (held.ok() && InodeOf(held.get()) == connection.inode) shutdown(held.get(), SHUT_RDWR);
  }
}

bool Acceptor::IsHungUp(const Connection& connection) {
  pollfd polled = {connection.number, POLLRDHUP, 0};
  return poll(&polled, 1, 0) == 1;
}

bool Acceptor::IsLost(absl::string_view address, absl::string_view host) const {
  const std::lock_guard lock(mutex_);
  bool any_is_up = false;
  bool any_hung_up = false;
  bool is_unix = false;
  for (const Connection& connection : connections_) {
    const Peer& peer = connection.peer;
    if (peer.uid.has_value() ? peer.host != host : peer.address != address) continue;
    is_unix = peer.uid.has_value();
    if (!IsOpen(connection)) continue;
    (IsHungUp(connection) ? any_hung_up : any_is_up) = true;
  }
  return is_unix ? any_hung_up : !any_is_up;
}

bool Acceptor::IsUnread(const Connection& connection) {
  int held = 0;
  const int allowed = connection.peer.uid.has_value() ? kInOneRead : 0;
  return IsOpen(connection) && ioctl(connection.number, SIOCOUTQ, &held) == 0 && held > allowed;
}

bool Acceptor::AwaitRead(std::chrono::steady_clock::time_point deadline) const {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (std::none_of(connections_.begin(), connections_.end(), IsUnread)) return true;
    }
    const auto now = steady_clock::now();
    if (now >= deadline) return false;
    std::this_thread::sleep_until(std::min(now + kLookEvery, deadline));
  }
}

}  // namespace gradclip
