#include "client/gradclip/memory_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/gradclip/utf8.h"

namespace gradclip {
namespace {

// How long to knock where the queue of the socket is full: many ranks may start at once.
constexpr absl::Duration kKnockTimeout = absl::Seconds(10);
constexpr absl::Duration kKnockAgainAfter = absl::Milliseconds(2);

absl::Status Failed(absl::string_view what, int error) {
  const absl::string_view text = std::strerror(error);
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(absl::StrCat(what, ": ", text));
  }
  return absl::UnavailableError(absl::StrCat(what, ": ", text));
}

absl::Status Overdue() {
  return absl::DeadlineExceededError("the call's timeout is over");
}

// Waits until there is something to read, or the other side has closed; false at the deadline.
bool AwaitReadable(int socket, absl::Time deadline) {
  while (true) {
    const absl::Duration left =
        std::clamp(deadline - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
    pollfd waited = {.fd = socket, .events = POLLIN, .revents = 0};
    const int ready = poll(&waited, 1, static_cast<int>(left / absl::Milliseconds(1)) + 1);
    if (ready > 0 || (ready < 0 && errno != EINTR)) return true;  // an error is recv()'s to tell
    if (absl::Now() >= deadline) return false;
  }
}

absl::Status Receive(int socket, std::span<std::byte> bytes, absl::Time deadline) {
  while (!bytes.empty()) {
    const ssize_t got = recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) {
      bytes = bytes.subspan(static_cast<size_t>(got));
    } else if (got == 0) {
      return absl::UnavailableError("it closed the connection before it had answered");
    } else if (errno != EAGAIN && errno != EINTR) {
      return Failed("can't receive", errno);
    } else if (!AwaitReadable(socket, deadline)) {
      return Overdue();
    }
  }
  return absl::OkStatus();
}

// The first bytes on a new connection: all of them find room.
absl::Status SendAll(int socket, const msghdr& message, size_t bytes) {
  const ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  if (sent == static_cast<ssize_t>(bytes)) return absl::OkStatus();
  return Failed("can't send the registration", sent < 0 ? errno : EAGAIN);
}

absl::Status Send(int socket, const MemoryLink::Memfd& memory, Registration registration) {
  registration.length = memory.bytes;
  auto bytes = ToBytes(registration);
  iovec part = {bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &memory.descriptor, sizeof(int));
  return SendAll(socket, message, bytes.size());
}

absl::Status Send(int socket, const CudaMemory& memory, Registration registration) {
  registration.kind = Registration::kCudaMemory;
  registration.length = memory.bytes;
  registration.offset = memory.offset;
  auto bytes = ToBytes(registration);
  auto allocation = ToBytes(CudaAllocation{.uuid = memory.uuid, .handle = memory.handle});
  iovec parts[] = {{bytes.data(), bytes.size()}, {allocation.data(), allocation.size()}};
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = std::size(parts);
  return SendAll(socket, message, bytes.size() + allocation.size());
}

absl::Status Connect(int socket, const std::string& path, absl::Time deadline) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrFormat("its path has %d bytes; the system allows %d",
                                                      path.size(), sizeof(address.sun_path) - 1));
  }
  std::copy(path.begin(), path.end(), address.sun_path);
  const absl::Time give_up = std::min(deadline, absl::Now() + kKnockTimeout);
  while (connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EAGAIN && errno != EINTR) return Failed("can't connect", errno);
    if (absl::Now() >= deadline) return Overdue();
    if (absl::Now() >= give_up) return Failed("it accepts no connection", EAGAIN);
    absl::SleepFor(kKnockAgainAfter);
  }
  return absl::OkStatus();
}

// Whoever may listen at a path that the server names, where the server is not of this host: a
// stranger here gets no gradient.
absl::Status CheckPeer(int socket, std::span<const uid_t> trusted) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return Failed("can't tell whose it is", errno);
  }
  if (peer.uid == geteuid() || peer.uid == 0 ||
      std::find(trusted.begin(), trusted.end(), peer.uid) != trusted.end()) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(
      absl::StrFormat("it is of user %d, and memory is handed to users %d and 0 only; if that is "
                      "the server's user, add it to server_uids of the options (--server-uids)",
                      peer.uid, geteuid()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryLink>> MemoryLink::Register(const std::string& path,
                                                                 const Memory& memory,
                                                                 bool read_only,
                                                                 std::span<const uid_t> trusted,
                                                                 absl::Time deadline) {
  const int opened = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (opened < 0) return Failed("can't open a socket", errno);
  std::unique_ptr<MemoryLink> link(new MemoryLink(opened, read_only));
  absl::Status status = Connect(opened, path, deadline);
  if (status.ok()) status = CheckPeer(opened, trusted);
  if (status.ok()) status = link->Exchange(memory, deadline);
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("its memory socket ", path, ": ", status.message()));
  }
  return link;
}

absl::Status MemoryLink::Exchange(const Memory& memory, absl::Time deadline) {
  Registration registration;
  registration.magic = Registration::Magic();
  registration.flags = read_only_ ? Registration::kReadOnly : 0;
  // Whom a server does not let in it tells so without reading, and closes: sending may then fail.
  const absl::Status sent =
      std::visit([&](const auto& handed) { return Send(socket_, handed, registration); }, memory);
  std::array<std::byte, RegistrationAnswer::kBytes> bytes;
  const absl::Status answered =
      sent.ok() ? Receive(socket_, bytes, deadline) : Receive(socket_, bytes, absl::InfinitePast());
  if (!answered.ok()) return sent.ok() ? answered : sent;
  const auto answer = FromBytes<RegistrationAnswer>(bytes);
  constexpr auto kLastStatus = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
  if (answer.status > kLastStatus || answer.message_bytes > RegistrationAnswer::kMostMessageBytes ||
      (answer.status == 0 && answer.token == RegionToken{})) {
    return absl::InternalError(absl::StrFormat(
        "what it sent is no answer to a registration: status %d, a message of %d bytes; check that "
        "it is a gradclip-server that listens there",
        answer.status, answer.message_bytes));
  }
  std::string message(answer.message_bytes, '\0');
  absl::Status got = Receive(socket_, std::as_writable_bytes(std::span(message)), deadline);
  if (!got.ok()) return got;
  if (answer.status != 0) {
    return absl::Status(static_cast<absl::StatusCode>(answer.status),
                        IsUtf8(message) ? message : absl::CHexEscape(message));
  }
  token_ = answer.token;
  return absl::OkStatus();
}

MemoryLink::~MemoryLink() {
  close(socket_);
}

bool MemoryLink::Alive() const {
  char byte;
  const ssize_t got = recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EINTR);
}

void MemoryLink::GiveUp() {
  shutdown(socket_, SHUT_WR);
}

bool MemoryLink::Release(absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  GiveUp();
  while (AwaitReadable(socket_, deadline)) {
    char bytes[256];
    const ssize_t got = recv(socket_, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return true;
    if (absl::Now() >= deadline) break;
  }
  return false;
}

}  // namespace gradclip
