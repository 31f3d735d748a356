#include "client/gradclip/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "client/gradclip/socket.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/listener.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

TEST(IsOnThisHost, HoldsForLoopbackAndUnixSocketsAlone) {
  const auto of = [](int family, const char* text) {
    sockaddr_storage address = {};
    address.ss_family = static_cast<sa_family_t>(family);
    void* const host = family == AF_INET
                           ? static_cast<void*>(&reinterpret_cast<sockaddr_in&>(address).sin_addr)
                           : &reinterpret_cast<sockaddr_in6&>(address).sin6_addr;
    EXPECT_TRUE(family == AF_UNIX || inet_pton(family, text, host) == 1);
    return IsOnThisHost(address);
  };
  EXPECT_TRUE(of(AF_UNIX, ""));
  EXPECT_TRUE(of(AF_INET, "127.0.0.1"));
  EXPECT_TRUE(of(AF_INET, "127.9.9.9"));
  EXPECT_TRUE(of(AF_INET6, "::1"));
  EXPECT_TRUE(of(AF_INET6, "::ffff:127.0.0.1"));
  EXPECT_FALSE(of(AF_INET, "10.0.0.1"));
  EXPECT_FALSE(of(AF_INET, "128.0.0.1"));
  EXPECT_FALSE(of(AF_INET6, "::"));
  EXPECT_FALSE(of(AF_INET6, "fe80::1"));
  EXPECT_FALSE(of(AF_INET6, "::ffff:10.0.0.1"));
}

TEST(ServerAddress, ReadsEveryForm) {
  const struct {
    std::string text, host, port, path;
  } cases[] = {
      {"127.0.0.1:50051", "127.0.0.1", "50051", ""},
      {"localhost:1", "localhost", "1", ""},
      {"[::1]:50051", "::1", "50051", ""},
      {"dns:///trainer:1", "trainer", "1", ""},
      {"dns:trainer:1", "trainer", "1", ""},
      {"ipv4:10.0.0.1:2", "10.0.0.1", "2", ""},
      {"ipv6:[::]:3", "::", "3", ""},
      {"unix:/run/gradclip.sock", "", "", "/run/gradclip.sock"},
      {"unix:///run/gradclip.sock", "", "", "/run/gradclip.sock"},
      {"unix:relative", "", "", "relative"},
      {"unix-abstract:name", "", "", std::string("\0name", 5)},
  };
  for (const auto& one : cases) {
    const auto parsed = ParseServerAddress(one.text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, one.host) << one.text;
    EXPECT_EQ(parsed->port, one.port) << one.text;
    EXPECT_EQ(parsed->path, one.path) << one.text;
  }
}

TEST(ServerAddress, RefusesWhatHasNoPortOrPath) {
  for (const char* text : {"", "localhost", "localhost:", ":50051", "::1", "[::1:5", "unix:"}) {
    const auto parsed = ParseServerAddress(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(parsed.status().message(), HasSubstr("write host:port or unix:path"));
  }
}

TEST(ServerAddress, RefusesWhatIsNoPort) {
  for (const char* port : {"0", "-1", "65536", "99999", "4294967297", "http", "50051x", "5e3"}) {
    const auto parsed = ParseServerAddress(absl::StrCat("localhost:", port));
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << port;
    EXPECT_THAT(parsed.status().message(), HasSubstr("a port is a number from 1 to 65535"));
  }
  EXPECT_TRUE(ParseServerAddress("localhost:65535").ok());
}

TEST(Connection, SaysWhyNobodyAnswers) {
  std::string address;
  {
    const Listener listener;
    address = listener.address();
  }
  const auto refused = Connection::Open(address, absl::InfiniteFuture());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.status().message(), HasSubstr("Connection refused; check the address"));

  const auto missing = Connection::Open("unix:/no/such/socket", absl::InfiniteFuture());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(missing.status().message(), HasSubstr("No such file or directory"));

  // No part of a host's name may be longer than 63 bytes, so that nobody is asked for it.
  const auto unknown = Connection::Open(std::string(70, 'x') + ":50051", absl::InfiniteFuture());
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(unknown.status().message(), HasSubstr("can't look up"));

  const auto long_path = Connection::Open("unix:/" + std::string(200, 'x'), absl::InfiniteFuture());
  EXPECT_EQ(long_path.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ConnectSocket, LetsTheSystemFindOutThatTheHostIsGone) {
  const Listener listener;
  const auto connected =
      ConnectSocket(*ParseServerAddress(listener.address()), absl::InfiniteFuture());
  ASSERT_TRUE(connected.ok()) << connected.status();
  const auto option = [&](int level, int name) {
    int value = 0;
    socklen_t size = sizeof(value);
    EXPECT_EQ(getsockopt(*connected, level, name, &value, &size), 0);
    return value;
  };
  EXPECT_EQ(option(SOL_SOCKET, SO_KEEPALIVE), 1);
  const int idle = option(IPPROTO_TCP, TCP_KEEPIDLE);
  const int probes = option(IPPROTO_TCP, TCP_KEEPINTVL) * option(IPPROTO_TCP, TCP_KEEPCNT);
  EXPECT_EQ(idle + probes, 30);
  EXPECT_EQ(option(IPPROTO_TCP, TCP_USER_TIMEOUT), 1000 * (idle + probes));
  close(*connected);
}

TEST(Connection, IsAliveUntilEitherSideClosesIt) {
  const Listener listener;
  const auto closed_there = Connection::Open(listener.address(), absl::InfiniteFuture());
  const auto cut_here = Connection::Open(listener.address(), absl::InfiniteFuture());
  ASSERT_TRUE(closed_there.ok() && cut_here.ok());
  EXPECT_TRUE((*closed_there)->Alive());
  const int other_end = listener.Accept();
  shutdown(other_end, SHUT_RDWR);
  EXPECT_FALSE((*closed_there)->Alive());
  EXPECT_TRUE((*cut_here)->Alive());
  (*cut_here)->Cut();
  EXPECT_FALSE((*cut_here)->Alive());
  close(other_end);
}

}  // namespace
}  // namespace gradclip
