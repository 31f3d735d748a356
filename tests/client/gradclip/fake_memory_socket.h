// A memory socket that does what a test scripts, and keeps what was registered. Each connection has
// a thread.
#ifndef GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_MEMORY_SOCKET_H_
#define GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_MEMORY_SOCKET_H_

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/shm/registration.h"

namespace gradclip {

// What one client registered; mapped here while the socket lives. Of CUDA memory the mapping is
// zeros of the socket's own that stand for it.
struct FakeRegion {
  Registration registration;
  CudaAllocation allocation{};
  RegionToken token{};
  std::byte* data = nullptr;
};

class FakeMemorySocket {
 public:
  // What is sent on a registration with this token. It may wait, or shut the connection down.
  using Answer = std::function<std::string(int connection, const RegionToken& token)>;

  explicit FakeMemorySocket(const std::string& path, Answer answer = Accept) : answer_(answer) {
    listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), address.sun_path);
    unlink(path.c_str());
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    acceptor_ = std::thread([this] {
      for (int connection = 0; (connection = accept(listener_, nullptr, nullptr)) >= 0;) {
        const std::lock_guard lock(mutex_);
        connections_.push_back(connection);
        threads_.emplace_back([this, connection] { Serve(connection); });
      }
    });
  }

  ~FakeMemorySocket() {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    CloseAll();
    for (std::thread& thread : threads_) thread.join();
    for (const FakeRegion& region : regions_) munmap(region.data, region.registration.length);
    close(listener_);
  }

  // Status, message and token as they are sent.
  static std::string Message(uint32_t status, const RegionToken& token, const std::string& text) {
    const auto head =
        ToBytes(RegistrationAnswer{status, static_cast<uint32_t>(text.size()), token});
    return std::string(reinterpret_cast<const char*>(head.data()), head.size()) + text;
  }
  static std::string Accept(int, const RegionToken& token) { return Message(0, token, ""); }
  static Answer Refuse(uint32_t status, const std::string& text) {
    return [=](int, const RegionToken&) { return Message(status, {}, text); };
  }

  // Called where a client has given its region up, before the connection is closed.
  void BeforeClose(std::function<void()> act) {
    const std::lock_guard lock(mutex_);
    before_close_ = std::move(act);
  }

  // Ends all connections, as a server does that stops.
  void CloseAll() {
    const std::lock_guard lock(mutex_);
    for (const int connection : connections_) shutdown(connection, SHUT_RDWR);
  }

  std::vector<FakeRegion> regions() const {
    const std::lock_guard lock(mutex_);
    return regions_;
  }

 private:
  void Serve(int connection) {
    std::array<std::byte, Registration::kBytes> bytes;
    iovec part = {bytes.data(), bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    const cmsghdr* const header = CMSG_FIRSTHDR(&message);
    FakeRegion region{FromBytes<Registration>(bytes)};
    int memfd = -1;
    if (header != nullptr) std::memcpy(&memfd, CMSG_DATA(header), sizeof(memfd));
    const bool cuda = region.registration.kind == Registration::kCudaMemory;
    const bool complete = cuda ? recv(connection, &region.allocation, sizeof(region.allocation),
                                      MSG_WAITALL) == sizeof(region.allocation)
                               : memfd >= 0;
    if (got == static_cast<ssize_t>(bytes.size()) && complete) {
      const std::string sent = answer_(connection, Keep(region, memfd));
      if (!sent.empty()) send(connection, sent.data(), sent.size(), MSG_NOSIGNAL);
      char byte;
      while (recv(connection, &byte, 1, 0) > 0) {
      }
      std::function<void()> before_close;
      {
        const std::lock_guard lock(mutex_);
        before_close = before_close_;
      }
      if (before_close) before_close();
    }
    const std::lock_guard lock(mutex_);
    connections_.erase(std::find(connections_.begin(), connections_.end(), connection));
    close(connection);
  }

  // memfd: -1 for CUDA memory.
  RegionToken Keep(FakeRegion region, int memfd) {
    const bool reads_only = memfd >= 0 && region.registration.flags == Registration::kReadOnly;
    region.data = static_cast<std::byte*>(
        mmap(nullptr, region.registration.length, reads_only ? PROT_READ : PROT_READ | PROT_WRITE,
             memfd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, memfd, 0));
    if (memfd >= 0) close(memfd);
    const std::lock_guard lock(mutex_);
    region.token.fill(static_cast<std::byte>(regions_.size() + 1));
    regions_.push_back(region);
    return region.token;
  }

  const Answer answer_;
  int listener_ = -1;
  std::thread acceptor_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<int> connections_;
  std::vector<std::thread> threads_;
  std::vector<FakeRegion> regions_;
  std::function<void()> before_close_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_MEMORY_SOCKET_H_
