#include "client/gradclip/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/gradclip/socket.h"
#include "gmock/gmock.h"

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

// Listens on a port of the loopback interface and accepts nobody.
class Listener {
 public:
  Listener() : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address_), sizeof(address_)), 0);
    EXPECT_EQ(listen(socket_, 16), 0);
    socklen_t size = sizeof(address_);
    EXPECT_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&address_), &size), 0);
  }
  ~Listener() { close(socket_); }

  int Accept() const { return accept(socket_, nullptr, nullptr); }
  std::string address() const { return absl::StrCat("127.0.0.1:", ntohs(address_.sin_port)); }

 private:
  const int socket_;
  sockaddr_in address_ = {};
};

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

TEST(ConnectionPool, GivesEachCallAConnectionOfItsOwn) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  auto first = pool.Take(absl::InfiniteFuture());
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  const Connection* used_last = second->get();
  EXPECT_NE(first->get(), used_last);
  pool.GiveBack(*std::move(first));
  pool.GiveBack(*std::move(second));
  EXPECT_EQ(pool.Take(absl::InfiniteFuture())->get(), used_last);
}

TEST(ConnectionPool, ConnectsAnewWhereTheIdleOnesAreLostOrTheServerIs) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  const auto accept = [&] { return listener.Accept(); };
  pool.GiveBack(*pool.Take(absl::InfiniteFuture()));
  const int lost = accept();
  shutdown(lost, SHUT_RDWR);
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE((*second)->Alive());
  const int cleared = accept();  // returns only where it connected anew
  pool.GiveBack(*std::move(second));
  pool.Lose(listener.address());
  auto third = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(third.ok()) << third.status();
  for (const int one : {lost, cleared, accept()}) close(one);
}

TEST(ConnectionPool, KeepsAFewIdleOnes) {
  const Listener listener;
  ConnectionPool pool(listener.address());
  std::vector<std::unique_ptr<Connection>> taken;
  for (int i = 0; i < 9; ++i) taken.push_back(*pool.Take(absl::InfiniteFuture()));
  std::set<const Connection*> kept;
  for (int i = 0; i < 9; ++i) {
    if (i < 8) kept.insert(taken[i].get());
    pool.GiveBack(std::move(taken[i]));
  }
  for (int i = 0; i < 8; ++i) taken[i] = *pool.Take(absl::InfiniteFuture());
  for (int i = 0; i < 8; ++i) EXPECT_EQ(kept.count(taken[i].get()), 1u) << i;
  EXPECT_EQ(kept.count(pool.Take(absl::InfiniteFuture())->get()), 0u);
}

// An address at which nobody listens, any more.
std::string Deserted() {
  const Listener listener;
  return listener.address();
}

TEST(ConnectionPool, TriesItsAddressesInOrderFromTheOneThatWorkedLast) {
  const Listener one;
  const Listener two;
  const std::string deserted = Deserted();
  ConnectionPool pool(absl::StrCat(deserted, ",", one.address(), ",", two.address()));
  const auto next = [&] {
    auto taken = pool.Take(absl::InfiniteFuture());
    return taken.ok() ? (*taken)->address() : taken.status().ToString();
  };
  EXPECT_EQ(next(), one.address());
  EXPECT_EQ(next(), one.address());
  pool.Lose(deserted);  // not the one that is in use
  EXPECT_EQ(next(), one.address());
  pool.Lose(one.address());
  EXPECT_EQ(next(), two.address());
  pool.Lose(two.address());  // after it comes the first, where nobody is
  EXPECT_EQ(next(), one.address());
}

TEST(ConnectionPool, LosesTheIdleOnesToOneAddressAlone) {
  const Listener one;
  const Listener two;
  ConnectionPool pool(absl::StrCat(one.address(), ",", two.address()));
  auto first = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(first.ok()) << first.status();
  pool.Lose(one.address());
  auto second = pool.Take(absl::InfiniteFuture());
  ASSERT_TRUE(second.ok()) << second.status();
  const Connection* const kept = second->get();
  pool.GiveBack(*std::move(first));
  pool.GiveBack(*std::move(second));
  pool.Lose(one.address());
  EXPECT_EQ(pool.Take(absl::InfiniteFuture())->get(), kept);
}

TEST(ConnectionPool, NamesEachAddressWhereNobodyAnswers) {
  const std::string one = Deserted();
  ConnectionPool pool(absl::StrCat(one, ",unix:/no/such/socket"));
  const absl::Status status = pool.Take(absl::InfiniteFuture()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr(one + ": can't connect: Connection refused"));
  EXPECT_THAT(status.message(), HasSubstr("; unix:/no/such/socket: can't connect"));
}

TEST(ConnectionPool, RefusesAListWithAnAddressThatCantBeRead) {
  const Listener listener;
  for (const char* rest : {",", ",nowhere", ",localhost:0"}) {
    ConnectionPool pool(listener.address() + rest);
    EXPECT_EQ(pool.Take(absl::InfiniteFuture()).status().code(), absl::StatusCode::kInvalidArgument)
        << rest;
  }
}

}  // namespace
}  // namespace gradclip
