// Who may call, by token or certificate, at a real server.
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"
#include "tests/server/rpc/server_fixture.h"
#include "tests/server/security/tls_fixture.h"
#include "tests/server/security/token_hash.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class AuthenticationTest : public ServerTest {
 protected:
  AuthenticationTest() {
    options_.auth_token_file = folder_.path("tokens");
    WriteTokens({"alpha"});
  }

  void WriteTokens(const std::vector<std::string>& tokens) {
    std::string text;
    for (const std::string& token : tokens) {
      absl::StrAppend(&text, "name-of-", token, " ", HashOf(token), "\n");
    }
    WriteFile(options_.auth_token_file + ".new", text);
    std::filesystem::rename(options_.auth_token_file + ".new", options_.auth_token_file);
  }

  static void Authorize(grpc::ClientContext& context, const std::string& authorization) {
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  }

  // One call of GetServerInfo.
  grpc::Status Ask(const std::string& authorization) {
    grpc::ClientContext context;
    Authorize(context, authorization);
    v1::GetServerInfoResponse response;
    const grpc::Status status = stub_->GetServerInfo(&context, {}, &response);
    EXPECT_EQ(response.instance().empty(), !status.ok());
    return status;
  }

  // All RPCs answer in the same way: their status.
  grpc::Status Call(const std::string& authorization) {
    const grpc::Status asked = Ask(authorization);
    grpc::ClientContext compute;
    Authorize(compute, authorization);
    v1::ComputeNormResponse compute_response;
    const auto computing = stub_->ComputeNorm(&compute, &compute_response);
    v1::ComputeNormRequest start;
    *start.mutable_start()->mutable_tensors() = ClipStart(1, 0).start().tensors();
    computing->Write(start);
    computing->WritesDone();
    const grpc::Status computed = computing->Finish();
    EXPECT_EQ(computed.error_code(), asked.error_code()) << computed.error_message();
    EXPECT_EQ(computed.error_message(), asked.error_message());

    grpc::ClientContext clip;
    Authorize(clip, authorization);
    const auto clipping = stub_->ClipGradNorm(&clip);
    clipping->Write(ClipStart(1, 0));
    clipping->WritesDone();
    const grpc::Status clipped = Drain(*clipping).status;
    EXPECT_EQ(clipped.error_code(), asked.error_code()) << clipped.error_message();
    EXPECT_EQ(clipped.error_message(), asked.error_message());
    return clipped;
  }

  TlsFolder folder_;
};

TEST_F(AuthenticationTest, TakesCallsWithAKnownTokenAlone) {
  WriteTokens({"alpha", "beta"});
  Serve();
  EXPECT_TRUE(Call("Bearer alpha").ok());
  EXPECT_TRUE(Call("bearer beta").ok());
  const std::pair<const char*, const char*> wrong[] = {
      {"", "has no token"},
      {"Bearer gamma", "is not known"},
      {"Bearer ", "is not known"},
      {"Bearer", "not of the form"},
      {"Basic alpha", "not of the form"},
      {"alpha", "not of the form"},
  };
  for (const auto& [authorization, why] : wrong) {
    const grpc::Status status = Call(authorization);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << authorization;
    // What to do, and nothing about others.
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr(why), Not(HasSubstr("name-of-")),
                                              Not(HasSubstr(options_.auth_token_file))));
  }
}

TEST_F(AuthenticationTest, HealthNeedsNoToken) {
  Serve();
  const grpc::Slice no_bytes;
  grpc::GenericStub generic(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::ByteBuffer response;
  grpc::Status status;
  const auto call = generic.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                             grpc::ByteBuffer(&no_bytes, 1), &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(AuthenticationTest, TakesRenewedTokensOverAndLetsRunningCallsEnd) {
  Serve();
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer alpha");
  const auto running = stub_->ClipGradNorm(&context);
  ASSERT_TRUE(running->Write(ClipStart(1, 1)));
  ASSERT_FALSE(Call("Bearer beta").ok());

  WriteTokens({"beta"});
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!Ask("Bearer beta").ok() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(Call("Bearer alpha").error_code(), grpc::StatusCode::UNAUTHENTICATED);

  ASSERT_TRUE(running->Write(Data(Bytes<float>({3}))));
  running->WritesDone();
  EXPECT_TRUE(Drain(*running).status.ok());
}

TEST_F(AuthenticationTest, StaysWithItsTokensWhileTheFileCannotBeUsedAndSaysWhy) {
  LogFile log(folder_.path("log"));
  Serve(log.log());
  const auto await = [&](const std::string& said) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (!absl::StrContains(log.text(), said) && absl::Now() < end) {
      absl::SleepFor(absl::Milliseconds(50));
    }
    EXPECT_THAT(log.text(), HasSubstr(said));
  };
  WriteFile(options_.auth_token_file, "name and nonsense");
  await("tokens not renewed; what is in use stays");
  EXPECT_TRUE(Call("Bearer alpha").ok());
  std::filesystem::remove(options_.auth_token_file);
  await("be read: No such file or directory");
  EXPECT_TRUE(Call("Bearer alpha").ok());
  server_.reset();
}

TEST_F(AuthenticationTest, DoesNotStartWithAFileThatCannotBeUsed) {
  WriteFile(options_.auth_token_file, "trainer nonsense");
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_, log_);
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.status().message(),
            absl::StrCat("--auth-token-file=", options_.auth_token_file,
                         ": line 1 has no SHA-256 after the name: 64 hexadecimal digits"));
}

TEST_F(AuthenticationTest, ACertificateTakesATokensPlace) {
  const CertificateFiles server = folder_.Server();
  options_.tls_cert = server.cert;
  options_.tls_key = server.key;
  options_.tls_client_ca = folder_.authority.ca_file();
  Serve();
  const CertificateFiles client =
      folder_.authority.Issue({.common_name = "trainer", .is_client = true});
  channel_ = grpc::CreateChannel(
      server_->addresses()[0],
      grpc::SslCredentials({.pem_root_certs = ReadFile(folder_.authority.ca_file()),
                            .pem_private_key = ReadFile(client.key),
                            .pem_cert_chain = ReadFile(client.cert)}));
  stub_ = v1::GradClip::NewStub(channel_);
  EXPECT_TRUE(Call("").ok());
  EXPECT_TRUE(Call("Bearer alpha").ok());
  // Who shows a token is not taken for somebody else.
  EXPECT_EQ(Call("Bearer gamma").error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(AuthenticationTest, OurClientShowsTheTokenOfItsFile) {
  Serve();
  const std::string token_file = folder_.path("token");
  WriteFile(token_file, "alpha\n");
  ClientOptions options;
  options.token_file = token_file;
  Client client(server_->addresses()[0], options);
  EXPECT_TRUE(client.GetServerInfo().ok());
  float elements[] = {3, 4};
  const Tensor tensor = {.name = "w", .dtype = DType::kFloat32, .shape = {2}, .data = elements};
  ClipOptions clip;
  clip.max_norm = 1;
  EXPECT_TRUE(client.ComputeNorm({&tensor, 1}).ok());
  EXPECT_TRUE(client.Clip({&tensor, 1}, clip).ok());

  WriteFile(token_file, "gamma");  // read anew for each call
  EXPECT_TRUE(absl::IsUnauthenticated(client.GetServerInfo().status()));
  EXPECT_TRUE(absl::IsUnauthenticated(client.ComputeNorm({&tensor, 1}).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(client.Clip({&tensor, 1}, clip).status()));
  EXPECT_TRUE(client.CheckHealth().ok());
  std::filesystem::remove(token_file);
  EXPECT_THAT(client.GetServerInfo().status().ToString(), HasSubstr("can't be read"));
}

TEST_F(AuthenticationTest, OurClientSharesMemoryWithItsToken) {
  options_.memory_socket = folder_.path("memory");
  options_.max_shared_bytes = options_.max_shared_bytes_per_peer = options_.memory_budget;
  options_.listen = {"unix:" + folder_.path("socket")};
  Serve();
  ClientOptions options;
  options.token_file = folder_.path("token");
  WriteFile(options.token_file, "alpha");
  Client client(server_->addresses()[0], options);
  SharedGradientOptions shared;
  shared.require_shared = true;
  absl::StatusOr<SharedGradient> gradient =
      SharedGradient::Make(client, std::vector<Tensor>{{.name = "w", .shape = {2}}}, shared);
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  const absl::StatusOr<NormAnswer> norm = gradient->ComputeNorm();
  EXPECT_TRUE(norm.ok()) << norm.status();
}

TEST_F(AuthenticationTest, ALogSaysWhoCalledAndNoToken) {
  WriteFile(options_.auth_token_file, absl::StrCat("trainer ", HashOf("secret-alpha")));
  LogFile log(folder_.path("log"));
  Serve(log.log());
  EXPECT_TRUE(Call("Bearer secret-alpha").ok());
  EXPECT_FALSE(Call("Bearer secret-gamma").ok());
  server_.reset();
  const std::string text = log.End();
  EXPECT_THAT(text, AllOf(HasSubstr(" by trainer 0 B in"), HasSubstr("UNAUTHENTICATED")));
  for (const std::string& secret : {std::string("secret"), HashOf("secret-alpha")}) {
    EXPECT_THAT(text, Not(HasSubstr(secret)));
  }
}

}  // namespace
}  // namespace gradclip
