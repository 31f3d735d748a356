#include "server/net/listener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/client/files/file_bytes.h"
#include "tests/server/net/dial.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void ExpectRefused(const std::string& address, const std::string& why) {
  const absl::StatusOr<Listener> listener = Listener::Open(address, std::nullopt);
  EXPECT_EQ(listener.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(listener.status().message()),
              AllOf(HasSubstr("cannot listen on "), HasSubstr(why), HasSubstr("--listen")));
}

TEST(ListenerTest, SaysWhichPortItHasGot) {
  for (const std::string host : {"127.0.0.1", "[::1]", "localhost"}) {
    const absl::StatusOr<Listener> listener = Listener::Open(host + ":0", std::nullopt);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_FALSE(listener->is_unix());
    EXPECT_THAT(listener->address(), testing::StartsWith(host + ":"));
    EXPECT_THAT(listener->address(), testing::Not(testing::EndsWith(":0")));
    EXPECT_TRUE(Dial(listener->address()).ok());
  }
}

TEST(ListenerTest, ListensAtEveryAddressOfAName) {
  const absl::StatusOr<Listener> listener = Listener::Open("localhost:0", std::nullopt);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string port = listener->address().substr(listener->address().rfind(':'));
  EXPECT_TRUE(Dial("127.0.0.1" + port).ok());
  EXPECT_EQ(Dial("[::1]" + port).ok(), listener->sockets().size() == 2);
}

TEST(ListenerTest, TakesBothFamiliesAtTheIpv6Wildcard) {
  const absl::StatusOr<Listener> listener = Listener::Open("[::]:0", std::nullopt);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string port = listener->address().substr(listener->address().rfind(':'));
  EXPECT_TRUE(Dial("127.0.0.1" + port).ok());
  EXPECT_TRUE(Dial("[::1]" + port).ok());
}

TEST(ListenerTest, SaysWhyItCannotListen) {
  const absl::StatusOr<Listener> first = Listener::Open("127.0.0.1:0", std::nullopt);
  ASSERT_TRUE(first.ok()) << first.status();
  ExpectRefused(first->address(), "another process listens there");
  ExpectRefused("192.0.2.1:0", "not an address of this machine");
  ExpectRefused("no-such-host.invalid:0", "no-such-host.invalid");
  ExpectRefused("unix:/no/such/folder/socket", "No such file or directory");
}

TEST(ListenerTest, GivesAUnixSocketTheRightsItIsToldAndRemovesIt) {
  const Folder folder;
  const std::string path = folder / "socket";
  {
    const absl::StatusOr<Listener> listener = Listener::Open("unix:" + path, 0666);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_TRUE(listener->is_unix());
    EXPECT_EQ(listener->address(), "unix:" + path);
    struct stat file = {};
    ASSERT_EQ(stat(path.c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0777U, 0666U);
    EXPECT_TRUE(Dial("unix:" + path).ok());
  }
  EXPECT_EQ(LookAtSocket(path), SocketFile::kMissing);
}

TEST(ListenerTest, LeavesTheRightsOfAUnixSocketToUmask) {
  const Folder folder;
  const std::string path = folder / "socket";
  const mode_t before = umask(027);
  const absl::StatusOr<Listener> listener = Listener::Open("unix:" + path, std::nullopt);
  umask(before);
  ASSERT_TRUE(listener.ok()) << listener.status();
  struct stat file = {};
  ASSERT_EQ(stat(path.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777U, 0750U);
}

}  // namespace
}  // namespace gradclip
