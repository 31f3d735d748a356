#include "client/gradclip/token_file.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TokenFileTest : public testing::Test {
 protected:
  ~TokenFileTest() override { std::filesystem::remove(path_); }

  absl::StatusOr<std::string> Read(const std::string& contents) {
    std::ofstream(path_, std::ios::binary) << contents;
    return ReadToken(path_);
  }

  std::string Error(const std::string& contents) {
    const absl::StatusOr<std::string> token = Read(contents);
    if (token.ok()) return "no error";
    EXPECT_TRUE(absl::IsInvalidArgument(token.status()));
    EXPECT_THAT(std::string(token.status().message()), HasSubstr("token_file " + path_));
    EXPECT_THAT(std::string(token.status().message()), Not(HasSubstr("alpha")));
    return std::string(token.status().message());
  }

  const std::string path_ = absl::StrCat(testing::TempDir(), "/gradclip_token.", getpid());
};

TEST_F(TokenFileTest, IsReadWithoutTheWhiteSpaceAroundIt) {
  EXPECT_EQ(Read("alpha").value(), "alpha");
  EXPECT_EQ(Read("  alpha+/=~\r\n\n").value(), "alpha+/=~");
  EXPECT_EQ(Read(std::string(4096, 'a')).value(), std::string(4096, 'a'));
}

TEST_F(TokenFileTest, ErrorsNameTheFileAndNotTheToken) {
  EXPECT_THAT(Error(""), HasSubstr("holds no token"));
  EXPECT_THAT(Error(" \n"), HasSubstr("holds no token"));
  EXPECT_THAT(Error("alpha beta"), HasSubstr("more than one word of printable ASCII"));
  EXPECT_THAT(Error("alpha\nbeta"), HasSubstr("more than one word of printable ASCII"));
  EXPECT_THAT(Error("alpha\x7f"), HasSubstr("printable ASCII"));
  EXPECT_THAT(Error("alph\xc3\xa4"), HasSubstr("printable ASCII"));
  EXPECT_THAT(Error(std::string(4097, 'a')), HasSubstr("more than 4 KiB"));
}

TEST_F(TokenFileTest, ErrorsSayWhyTheFileCannotBeRead) {
  const absl::StatusOr<std::string> missing = ReadToken("/nowhere/token");
  EXPECT_TRUE(absl::IsInvalidArgument(missing.status()));
  EXPECT_EQ(missing.status().message(),
            "token_file /nowhere/token can't be read: No such file or directory");
  EXPECT_THAT(std::string(ReadToken(testing::TempDir()).status().message()),
              HasSubstr("is no regular file"));
}

// An IPv4 address of this host that is not the loopback interface's.
std::optional<in_addr> NetworkAddress() {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return std::nullopt;
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> free_it(all, &freeifaddrs);
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    if ((one->ifa_flags & IFF_LOOPBACK) != 0 || (one->ifa_flags & IFF_UP) == 0) continue;
    return reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr;
  }
  return std::nullopt;
}

TEST_F(TokenFileTest, IsNotSentOverANetworkUnencrypted) {
  const std::optional<in_addr> host = NetworkAddress();
  if (!host.has_value()) GTEST_SKIP() << "this host has no address beside 127.0.0.1";
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr = *host;
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  socklen_t size = sizeof(address);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  char name[INET_ADDRSTRLEN];
  inet_ntop(AF_INET, &*host, name, sizeof(name));

  std::ofstream(path_) << "alpha";
  ClientOptions options;
  options.token_file = path_;
  options.max_retries = 0;
  Client client(absl::StrCat(name, ":", ntohs(address.sin_port)), options);
  CallOptions call;
  call.timeout = absl::Seconds(10);
  const absl::Status status = client.GetServerInfo(call).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the token would cross the network unencrypted"));

  const int accepted = accept(listener, nullptr, nullptr);
  std::string received;
  char bytes[4096];
  for (ssize_t got = 0; (got = recv(accepted, bytes, sizeof(bytes), 0)) > 0;) {
    received.append(bytes, static_cast<size_t>(got));
  }
  EXPECT_THAT(received, Not(HasSubstr("alpha")));
  close(accepted);
  close(listener);
}

}  // namespace
}  // namespace gradclip
