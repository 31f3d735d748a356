#include "tests/server/shm/memory_client.h"

#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <utility>

#include "tests/server/shm/memfds.h"

namespace gradclip {

std::string RegistrationBytes(uint64_t length, uint16_t flags) {
  return RegistrationBytes(
      Registration{.magic = Registration::Magic(), .flags = flags, .length = length});
}

std::string RegistrationBytes(const Registration& registration) {
  const auto bytes = ToBytes(registration);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool SendMessage(int socket, std::string_view bytes, std::span<const int> descriptors) {
  iovec part = {const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(253 * sizeof(int))> control{};
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

MemoryClient::MemoryClient(const std::string& path)
    : MemoryClient(path, FileDescriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))) {}

MemoryClient::MemoryClient(const std::string& path, FileDescriptor unconnected)
    : socket_(std::move(unconnected)) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(socket(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0)
      << strerror(errno);
}

bool MemoryClient::Send(std::string_view bytes, std::vector<int> descriptors) {
  return SendMessage(socket(), bytes, descriptors);
}

bool MemoryClient::ReceiveExactly(char* bytes, size_t count) {
  while (count > 0) {
    pollfd wait = {socket(), POLLIN, 0};
    if (poll(&wait, 1, 30'000) <= 0) {
      ADD_FAILURE() << "nothing came for half a minute";
      return false;
    }
    const ssize_t received = recv(socket(), bytes, count, 0);
    if (received <= 0) return false;
    bytes += received;
    count -= static_cast<size_t>(received);
  }
  return true;
}

std::optional<MemoryClient::Answer> MemoryClient::Receive() {
  std::array<std::byte, RegistrationAnswer::kBytes> head;
  if (!ReceiveExactly(reinterpret_cast<char*>(head.data()), head.size())) return std::nullopt;
  const auto answer = FromBytes<RegistrationAnswer>(head);
  EXPECT_LE(answer.message_bytes, RegistrationAnswer::kMostMessageBytes);
  std::string message(answer.message_bytes, '\0');
  if (!ReceiveExactly(message.data(), message.size())) return std::nullopt;
  return Answer{static_cast<absl::StatusCode>(answer.status), message, answer.token};
}

std::optional<MemoryClient::Answer> MemoryClient::Register(const FileDescriptor& memfd,
                                                           uint64_t length, uint16_t flags) {
  EXPECT_TRUE(Send(RegistrationBytes(length, flags), {memfd.get()}));
  return Receive();
}

bool MemoryClient::IsTaken() const {
  int left = 0;
  return ioctl(socket(), SIOCOUTQ, &left) == 0 && left == 0;
}

bool MemoryClient::AwaitEnd() {
  pollfd wait = {socket(), POLLIN, 0};
  char byte;
  return poll(&wait, 1, 30'000) > 0 && recv(socket(), &byte, 1, 0) <= 0;
}

}  // namespace gradclip
