#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/net/acceptor_fixture.h"
#include "tests/server/net/dial.h"

namespace gradclip {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST_F(AcceptorTest, SaysWhoConnects) {
  Listen({"127.0.0.1:0", "[::1]:0", UnixAddress()});

  const FileDescriptor v4 = Dial(addresses_[0]);
  const Peer first = taken_.Next().peer;
  EXPECT_EQ(first.host, "127.0.0.1");
  EXPECT_THAT(first.address, testing::StartsWith("ipv4:127.0.0.1:"));
  EXPECT_FALSE(first.uid.has_value());
  EXPECT_EQ(HostOf(first.address), first.host);

  const FileDescriptor v6 = Dial(addresses_[1]);
  const Peer second = taken_.Next().peer;
  EXPECT_EQ(second.host, "::/64");
  EXPECT_THAT(second.address, testing::StartsWith("ipv6:%5B::1%5D:"));
  EXPECT_EQ(HostOf(second.address), second.host);

  const FileDescriptor unix_socket = Dial(addresses_[2]);
  const Peer third = taken_.Next().peer;
  EXPECT_EQ(third.host, absl::StrCat("uid:", geteuid()));
  EXPECT_EQ(third.uid, geteuid());
}

TEST_F(AcceptorTest, TakesAnIpv4HostForOneWhereverItConnects) {
  Listen({"[::]:0"});
  const FileDescriptor connection =
      Dial("127.0.0.1" + addresses_[0].substr(addresses_[0].rfind(':')));
  EXPECT_EQ(taken_.Next().peer.host, "127.0.0.1");
}

TEST(HostOf, IsAnAddressOrANetwork) {
  EXPECT_EQ(HostOf("ipv4:10.1.2.3:5123"), "10.1.2.3");
  EXPECT_EQ(HostOf("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5123"), "2001:db8:1:2::/64");
  EXPECT_EQ(HostOf("unix:"), "unix:");
  EXPECT_EQ(HostOf("ipv6:%5Bnonsense%5D:1"), "ipv6:%5Bnonsense%5D:1");
}

TEST_F(AcceptorTest, ClosesWhatIsOverTheLimitOfAll) {
  Listen({"127.0.0.1:0", UnixAddress()}, {.connections = 2, .connections_per_peer = 2});
  const FileDescriptor one = Dial(addresses_[0]);
  const FileDescriptor two = Dial(addresses_[1]);
  Taken::One first = taken_.Next();
  const Taken::One second = taken_.Next();
  EXPECT_EQ(acceptor_->connections(), 2U);

  EXPECT_TRUE(IsClosedByPeer(Dial(addresses_[0])));
  EXPECT_EQ(hits_.of("max-connections"), 1U);

  // A place is free once gRPC has closed a connection.
  first.connection = FileDescriptor();
  EXPECT_EQ(acceptor_->connections(), 1U);
  std::this_thread::sleep_for(milliseconds(20));  // it is looked for only now and then
  const FileDescriptor three = Dial(addresses_[0]);
  const Taken::One third = taken_.Next();
  EXPECT_EQ(acceptor_->connections(), 2U);
}

TEST_F(AcceptorTest, ClosesWhatIsOverTheLimitOfOnePeer) {
  Listen({"127.0.0.1:0", UnixAddress()}, {.connections = 10, .connections_per_peer = 1});
  const FileDescriptor one = Dial(addresses_[0]);
  const Taken::One first = taken_.Next();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(IsClosedByPeer(Dial(addresses_[0])));
  EXPECT_EQ(hits_.of("max-connections-per-peer"), 3U);
  // Others are let in.
  const FileDescriptor other = Dial(addresses_[1]);
  const Taken::One second = taken_.Next();
  EXPECT_TRUE(second.peer.uid.has_value());
}

TEST_F(AcceptorTest, TakesUsersThatAreNotListedForOne) {
  Listen({UnixAddress()},
         {.connections = 10, .connections_per_peer = 10, .listed_uids = {geteuid() + 1}});
  const FileDescriptor connection = Dial(addresses_[0]);
  EXPECT_EQ(taken_.Next().peer.host, "users that may not call");
}

TEST_F(AcceptorTest, CutsTheConnectionOfAnAddressAlone) {
  Listen({"127.0.0.1:0"});
  const FileDescriptor one = Dial(addresses_[0]);
  const Taken::One first = taken_.Next();
  const FileDescriptor two = Dial(addresses_[0]);
  const Taken::One second = taken_.Next();
  acceptor_->Cut(second.peer.address);
  acceptor_->Cut("ipv4:10.0.0.1:1");
  EXPECT_TRUE(IsClosedByPeer(two));
  char byte = 0;
  EXPECT_EQ(recv(one.get(), &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, EAGAIN);
}

// The number may belong to another file once gRPC has closed the connection.
TEST_F(AcceptorTest, NeverTouchesWhatHasTakenAConnectionsNumber) {
  Listen({"127.0.0.1:0"});
  const FileDescriptor peer = Dial(addresses_[0]);
  Taken::One taken = taken_.Next();
  int pair[2] = {};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const FileDescriptor other_end(pair[1]);
  const FileDescriptor mine(taken.connection.Release());
  ASSERT_EQ(dup3(pair[0], mine.get(), O_CLOEXEC), mine.get());
  close(pair[0]);

  acceptor_->Cut(taken.peer.address);
  EXPECT_EQ(send(mine.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(acceptor_->connections(), 0U);
  EXPECT_TRUE(acceptor_->AwaitRead(steady_clock::now()));
}

TEST_F(AcceptorTest, AcceptsNobodyOnceClosed) {
  Listen({"127.0.0.1:0", UnixAddress()});
  const FileDescriptor before = Dial(addresses_[0]);
  const Taken::One taken = taken_.Next();
  acceptor_->Close();
  for (const std::string& address : addresses_) EXPECT_FALSE(Dial(address).ok());
  EXPECT_EQ(acceptor_->connections(), 1U);
  acceptor_->Close();
}

class Unread : public AcceptorTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    Listen({std::string(GetParam()) == "unix" ? UnixAddress() : GetParam()});
    peer_ = Dial(addresses_[0]);
    accepted_ = taken_.Next();
  }

  // From the server's side, until its socket takes no more. Returns the bytes.
  size_t Fill() {
    const std::vector<char> bytes(1 << 16);
    size_t sent = 0;
    while (true) {
      const ssize_t more =
          send(accepted_.connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (more < 0) return sent;
      sent += static_cast<size_t>(more);
    }
  }

  // On the peer's side.
  void Read(size_t bytes) {
    std::vector<char> taken(1 << 16);
    while (bytes > 0) {
      const ssize_t more = recv(peer_.get(), taken.data(), std::min(taken.size(), bytes), 0);
      ASSERT_GT(more, 0);
      bytes -= static_cast<size_t>(more);
    }
  }

  bool AllIsReadWithin(milliseconds time) {
    return acceptor_->AwaitRead(steady_clock::now() + time);
  }

  FileDescriptor peer_;
  Taken::One accepted_;
};

TEST_P(Unread, IsNothingOfAConnectionThatHasSentNothing) {
  EXPECT_TRUE(AllIsReadWithin(milliseconds(0)));
}

TEST_P(Unread, IsWaitedForUntilThePeerHasIt) {
  const size_t sent = Fill();
  std::atomic<bool> returned = false;
  std::thread waiter([&] {
    EXPECT_TRUE(AllIsReadWithin(std::chrono::hours(1)));
    returned = true;
  });
  Read(sent / 4);
  EXPECT_FALSE(returned);
  Read(sent - sent / 4);
  waiter.join();
}

TEST_P(Unread, IsWaitedForUntilTheDeadline) {
  Fill();
  const auto begin = steady_clock::now();
  EXPECT_FALSE(AllIsReadWithin(milliseconds(20)));
  EXPECT_GE(steady_clock::now() - begin, milliseconds(20));
}

// What gRPC sends between calls stays where it is while the peer idles.
TEST_P(Unread, OfAFewSmallFramesIsNotWaitedFor) {
  const std::string frame(17, '\0');
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(send(accepted_.connection.get(), frame.data(), frame.size(), 0),
              static_cast<ssize_t>(frame.size()));
  }
  EXPECT_TRUE(AllIsReadWithin(std::chrono::hours(1)));
}

INSTANTIATE_TEST_SUITE_P(Families, Unread, testing::Values("127.0.0.1:0", "[::1]:0", "unix"),
                         [](const testing::TestParamInfo<const char*>& family) {
                           return family.index == 0 ? "Ipv4" : family.index == 1 ? "Ipv6" : "Unix";
                         });

}  // namespace
}  // namespace gradclip
