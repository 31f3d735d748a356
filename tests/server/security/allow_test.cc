// What --allow lets callers do, at a real server.
#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/server/rpc/server_fixture.h"
#include "tests/server/security/tls_fixture.h"
#include "tests/server/security/token_hash.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class AllowTest : public ServerTest {
 protected:
  AllowTest() {
    options_.auth_token_file = folder_.path("tokens");
    options_.allow = folder_.path("allow");
    options_.memory_socket = folder_.path("memory");
    options_.max_shared_bytes = options_.max_shared_bytes_per_peer = options_.memory_budget;
    WriteFile(options_.auth_token_file,
              absl::StrCat("alpha ", HashOf("alpha"), "\nbeta ", HashOf("beta"), "\n"));
  }

  void Allow(const std::string& text) {
    WriteFile(options_.allow + ".new", text);
    std::filesystem::rename(options_.allow + ".new", options_.allow);
  }

  grpc::Status Call(const std::string& token,
                    const std::vector<v1::ClipGradNormRequest>& requests) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    const auto stream = stub_->ClipGradNorm(&context);
    for (const auto& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    return Drain(*stream).status;
  }

  grpc::Status Info(const std::string& token, v1::GetServerInfoResponse& info) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    return stub_->GetServerInfo(&context, {}, &info);
  }

  static v1::ClipGradNormRequest WithJob(const std::string& job) {
    v1::ClipGradNormRequest request = ClipStart(1, 1);
    v1::Group& group = *request.mutable_start()->mutable_group();
    group.set_job(job);
    group.set_world_size(1);
    return request;
  }

  static void ExpectDenied(const grpc::Status& status, const std::string& what) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << status.error_message();
    EXPECT_THAT(status.error_message(),
                AllOf(HasSubstr(what), HasSubstr("--allow"), Not(HasSubstr("beta"))));
  }

  TlsFolder folder_;
};

TEST_F(AllowTest, WhoHasALineMayCall) {
  Allow("beta\n");
  Serve();
  v1::GetServerInfoResponse info;
  ExpectDenied(Info("alpha", info), "alpha");
  ExpectDenied(Call("alpha", {ClipStart(1, 0)}), "alpha");
  EXPECT_TRUE(Info("beta", info).ok());
  EXPECT_TRUE(Call("beta", {ClipStart(1, 0)}).ok());
}

TEST_F(AllowTest, JobsAreAllowedByPrefix) {
  Allow("alpha jobs=train-,eval\n");
  Serve();
  ExpectDenied(Call("alpha", {WithJob("other")}), "other");
  ExpectDenied(Call("alpha", {WithJob("train")}), "train");
  EXPECT_NE(Call("alpha", {WithJob("train-1")}).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_NE(Call("alpha", {WithJob("eval")}).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Call("alpha", {ClipStart(1, 0)}).ok());
}

TEST_F(AllowTest, GradientsAreAllowedUpToASize) {
  Allow("alpha max-gradient-bytes=4\nbeta\n");
  Serve();
  EXPECT_TRUE(Call("alpha", {ClipStart(1, 1), Data("1234")}).ok());
  ExpectDenied(Call("alpha", {ClipStart(1, 2), Data("12345678")}), "8 bytes");
  EXPECT_TRUE(Call("beta", {ClipStart(1, 2), Data("12345678")}).ok());
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(Info("alpha", info).ok());
  EXPECT_EQ(info.max_call_bytes(), 4U);
  ASSERT_TRUE(Info("beta", info).ok());
  EXPECT_EQ(info.max_call_bytes(), options_.max_call_bytes);
}

TEST_F(AllowTest, SharedMemoryIsAllowedOrNot) {
  Allow("alpha shared-memory=no\nbeta\n");
  Serve();
  v1::ClipGradNormRequest ranges;
  ranges.mutable_shared()->set_region(std::string(16, 'r'));
  ranges.mutable_shared()->add_offset(0);
  ranges.mutable_shared()->add_length(4);
  ExpectDenied(Call("alpha", {ClipStart(1, 1), ranges}), "share memory");
  EXPECT_EQ(Call("beta", {ClipStart(1, 1), ranges}).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(Info("alpha", info).ok());
  EXPECT_EQ(info.memory_socket(), "");
  ASSERT_TRUE(Info("beta", info).ok());
  EXPECT_EQ(info.memory_socket(), options_.memory_socket);
}

TEST_F(AllowTest, IsTakenOverWhenItChanges) {
  Allow("alpha\nbeta\n");
  Serve();
  EXPECT_TRUE(Call("alpha", {ClipStart(1, 0)}).ok());
  Allow("beta\n");
  while (Call("alpha", {ClipStart(1, 0)}).ok()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(Call("beta", {ClipStart(1, 0)}).ok());
}

TEST_F(AllowTest, MustMakeSenseAtTheStart) {
  Allow("alpha jobz=x\n");
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_, log_);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(server.status().message()),
              AllOf(HasSubstr("--allow"), HasSubstr("jobz")));
}

TEST_F(AllowTest, HealthIsOpenOrNot) {
  Allow("*\n");
  Serve();
  EXPECT_TRUE(Client(server_->addresses()[0]).CheckHealth().ok());

  options_.open_health = false;
  Serve();
  EXPECT_EQ(Client(server_->addresses()[0]).CheckHealth().code(),
            absl::StatusCode::kUnauthenticated);
  ClientOptions options;
  options.token_file = folder_.path("token");
  WriteFile(options.token_file, "alpha");
  EXPECT_TRUE(Client(server_->addresses()[0], options).CheckHealth().ok());
}

}  // namespace
}  // namespace gradclip
