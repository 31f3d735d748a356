// Users of a unix socket, told apart by the server.
#include <grpcpp/create_channel_posix.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/server/net/dial.h"
#include "tests/server/rpc/server_fixture.h"
#include "tests/server/security/tls_fixture.h"
#include "tests/server/security/token_hash.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class UnixUsersTest : public ServerTest {
 protected:
  UnixUsersTest() { options_.listen = {"unix:" + folder_.path("socket")}; }

  grpc::Status Ask(v1::GradClip::Stub& stub, const std::string& token = "") {
    grpc::ClientContext context;
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    v1::GetServerInfoResponse response;
    return stub.GetServerInfo(&context, {}, &response);
  }
  grpc::Status Ask(const std::string& token = "") { return Ask(*stub_, token); }

  void UseTokens() {
    options_.auth_token_file = folder_.path("tokens");
    WriteFile(options_.auth_token_file, absl::StrCat("name ", HashOf("alpha"), "\n"));
  }

  // Over a connection that another user has opened. For root alone.
  std::unique_ptr<v1::GradClip::Stub> ConnectAs(uid_t uid) {
    FileDescriptor connection;
    std::thread other([&] {
      // The thread's alone, unlike setresuid().
      ASSERT_EQ(syscall(SYS_setresuid, -1, uid, -1), 0);
      connection = Dial(server_->addresses()[0]);
    });
    other.join();
    EXPECT_TRUE(connection.ok());
    return v1::GradClip::NewStub(grpc::CreateInsecureChannelFromFd("unix:", connection.Release()));
  }

  void LetOthersReachTheSocket() {
    chmod(folder_.path("").c_str(), 0711);
    chmod(folder_.path("socket").c_str(), 0666);
  }

  TlsFolder folder_;
};

TEST_F(UnixUsersTest, AreNamedInTheLog) {
  LogFile log(folder_.path("log"));
  Serve(log.log());
  EXPECT_TRUE(Ask().ok());
  EXPECT_TRUE(Ask().ok());
  server_.reset();
  EXPECT_THAT(log.End(), HasSubstr(absl::StrCat("by uid:", geteuid())));
}

TEST_F(UnixUsersTest, MayCallWhereTheyAreListed) {
  options_.unix_socket_uids = {geteuid() + 1, geteuid()};
  Serve();
  EXPECT_TRUE(Ask().ok());
  struct stat file = {};
  ASSERT_EQ(stat(folder_.path("socket").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777U, 0666U);
}

TEST_F(UnixUsersTest, MayNotCallWhereOthersAreListed) {
  options_.unix_socket_uids = {geteuid() + 1};
  Serve();
  for (int i = 0; i < 2; ++i) {
    const grpc::Status status = Ask();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(status.error_message(), HasSubstr("--unix-socket-uids"));
    // Nothing about others.
    EXPECT_THAT(status.error_message(), Not(HasSubstr(absl::StrCat(geteuid() + 1))));
  }
  const Reply reply = Clip({ClipStart(1, 0)});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Client(server_->addresses()[0]).CheckHealth().ok());
}

TEST_F(UnixUsersTest, NeedATokenWhereNobodyIsListed) {
  UseTokens();
  Serve();
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Ask("alpha").ok());
}

TEST_F(UnixUsersTest, NeedNoTokenWhereTheyAreListed) {
  UseTokens();
  options_.unix_socket_uids = {geteuid()};
  Serve();
  EXPECT_TRUE(Ask().ok());
  EXPECT_TRUE(Ask("alpha").ok());
  EXPECT_EQ(Ask("beta").error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(UnixUsersTest, MayCallWithATokenThoughOthersAreListed) {
  UseTokens();
  options_.unix_socket_uids = {geteuid() + 1};
  Serve();
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Ask("alpha").ok());
}

TEST_F(UnixUsersTest, AreToldApart) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can connect as others";
  options_.allow = folder_.path("allow");
  WriteFile(options_.allow, "uid:0\nuid:1001\n");
  LogFile log(folder_.path("log"));
  Serve(log.log());
  LetOthersReachTheSocket();
  EXPECT_TRUE(Ask().ok());
  const auto allowed = ConnectAs(1001);
  const auto other = ConnectAs(1002);
  EXPECT_TRUE(Ask(*allowed).ok());
  const grpc::Status refused = Ask(*other);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refused.error_message(), HasSubstr("uid:1002"));
  EXPECT_TRUE(Ask(*allowed).ok());
  EXPECT_TRUE(Ask().ok());
  server_.reset();
  const std::string text = log.End();
  EXPECT_THAT(text, HasSubstr("by uid:1001"));
  EXPECT_THAT(text, HasSubstr("by uid:0 "));
}

// There are so many entrances; who has one keeps it.
TEST_F(UnixUsersTest, AreRefusedOnceTooManyHaveBeenToldApart) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can connect as others";
  Serve();
  LetOthersReachTheSocket();
  for (uid_t uid = 1001; uid < 1001 + kMaxUnixUsers; ++uid) {
    ASSERT_TRUE(Ask(*ConnectAs(uid)).ok()) << uid;
  }
  EXPECT_EQ(Ask(*ConnectAs(5000)).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Ask(*ConnectAs(1001)).ok());
}

}  // namespace
}  // namespace gradclip
