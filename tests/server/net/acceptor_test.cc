// What connections of a server still hold for their peers, with sockets alone.
#include "server/rpc/unread.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A listener, and one connection that it has accepted.
class Sockets {
 public:
  explicit Sockets(int family) {
    sockaddr_storage address = {};
    socklen_t size = 0;
    if (family == AF_UNIX) {
      static std::atomic<int> next = 0;
      auto& unix_address = reinterpret_cast<sockaddr_un&>(address);
      path_ = absl::StrCat("/tmp/gradclip_unread_test.", getpid(), ".", next++, ".sock");
      std::strcpy(unix_address.sun_path, path_.c_str());
      size = sizeof(sockaddr_un);
    } else if (family == AF_INET6) {
      reinterpret_cast<sockaddr_in6&>(address).sin6_addr = in6addr_loopback;
      size = sizeof(sockaddr_in6);
    } else {
      reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      size = sizeof(sockaddr_in);
    }
    address.ss_family = static_cast<sa_family_t>(family);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    listener_ = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(listener_, any, size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    EXPECT_EQ(getsockname(listener_, any, &size), 0);
    peer_ = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // So that it does not grow while it is read, and take all that is left.
    const int room = 1 << 16;
    setsockopt(peer_, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
    EXPECT_EQ(connect(peer_, any, size), 0);
    accepted_ = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    EXPECT_GE(accepted_, 0);
    if (family == AF_UNIX) {
      address_ = "unix:" + path_;
    } else if (family == AF_INET6) {
      address_ = absl::StrCat("[::1]:", ntohs(reinterpret_cast<sockaddr_in6&>(address).sin6_port));
    } else {
      address_ =
          absl::StrCat("127.0.0.1:", ntohs(reinterpret_cast<sockaddr_in&>(address).sin_port));
    }
  }

  ~Sockets() {
    close(accepted_);
    close(peer_);
    close(listener_);
    if (!path_.empty()) unlink(path_.c_str());
  }

  // As Server::addresses() has it.
  const std::string& address() const { return address_; }

  // From the server's side, until its socket takes no more. Returns the bytes.
  size_t Fill() {
    const std::vector<char> bytes(1 << 16);
    size_t sent = 0;
    while (true) {
      const ssize_t more = send(accepted_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (more < 0) return sent;
      sent += static_cast<size_t>(more);
    }
  }
  void Send(const std::string& bytes) {
    EXPECT_EQ(send(accepted_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }

  // On the peer's side.
  void Take(size_t bytes) {
    std::vector<char> taken(1 << 16);
    while (bytes > 0) {
      const ssize_t more = recv(peer_, taken.data(), std::min(taken.size(), bytes), 0);
      ASSERT_GT(more, 0);
      bytes -= static_cast<size_t>(more);
    }
  }

 private:
  std::string path_;
  std::string address_;
  int listener_ = -1;
  int peer_ = -1;
  int accepted_ = -1;
};

class Unread : public testing::TestWithParam<int> {
 protected:
  static bool AllIsReadWithin(milliseconds time, const std::vector<std::string>& addresses) {
    return AwaitRead(addresses, steady_clock::now() + time);
  }

  Sockets sockets_{GetParam()};
};

TEST_P(Unread, IsNothingOfAConnectionThatHasSentNothing) {
  EXPECT_TRUE(AllIsReadWithin(milliseconds(0), {sockets_.address()}));
}

TEST_P(Unread, IsWaitedForUntilThePeerHasIt) {
  const size_t sent = sockets_.Fill();
  std::atomic<bool> returned = false;
  std::thread waiter([&] {
    EXPECT_TRUE(AllIsReadWithin(std::chrono::hours(1), {"10.0.0.1:1", sockets_.address()}));
    returned = true;
  });
  sockets_.Take(sent / 4);
  EXPECT_FALSE(returned);
  sockets_.Take(sent - sent / 4);
  waiter.join();
}

TEST_P(Unread, IsWaitedForUntilTheDeadline) {
  sockets_.Fill();
  const auto begin = steady_clock::now();
  EXPECT_FALSE(AllIsReadWithin(milliseconds(20), {sockets_.address()}));
  EXPECT_GE(steady_clock::now() - begin, milliseconds(20));
}

TEST_P(Unread, IsNotWaitedForAtOtherAddresses) {
  Sockets others(GetParam());
  others.Fill();
  EXPECT_TRUE(AllIsReadWithin(milliseconds(0), {sockets_.address()}));
  EXPECT_FALSE(AllIsReadWithin(milliseconds(0), {others.address(), sockets_.address()}));
}

// What gRPC sends between calls stays where it is while the peer idles.
TEST_P(Unread, OfAFewSmallFramesIsNotWaitedFor) {
  const std::string frame(17, '\0');
  for (int i = 0; i < 5; ++i) sockets_.Send(frame);
  EXPECT_TRUE(AllIsReadWithin(std::chrono::hours(1), {sockets_.address()}));
}

INSTANTIATE_TEST_SUITE_P(Families, Unread, testing::Values(AF_INET, AF_INET6, AF_UNIX),
                         [](const testing::TestParamInfo<int>& family) {
                           return family.param == AF_UNIX    ? "Unix"
                                  : family.param == AF_INET6 ? "Ipv6"
                                                             : "Ipv4";
                         });

}  // namespace
}  // namespace gradclip
