// A server with certificates, and clients as any language has them.
#include <grpc/support/log.h>
#include <grpcpp/security/credentials.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/security/renewed_credentials.h"
#include "tests/server/rpc/server_fixture.h"
#include "tests/server/security/tls_fixture.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TlsServerTest : public ServerTest {
 protected:
  static void SetUpTestSuite() {
    // Refused handshakes fill pages.
    gpr_set_log_function([](gpr_log_func_args*) {});
    ServerTest::SetUpTestSuite();
  }

  TlsServerTest() {
    options_.tls_cert = folder_.path("cert.pem");
    options_.tls_key = folder_.path("key.pem");
    Use(folder_.Server());
  }

  // What the server reads from now on, each file replaced as a whole.
  void Use(const CertificateFiles& files) {
    Replace(files.cert, options_.tls_cert);
    Replace(files.key, options_.tls_key);
  }

  static void Replace(const std::string& from, const std::string& to) {
    std::filesystem::copy_file(from, to + ".new");
    std::filesystem::rename(to + ".new", to);
  }

  // One call over a connection of its own.
  grpc::Status Call(const grpc::SslCredentialsOptions& options, absl::Duration timeout,
                    size_t address = 0) {
    return CallWith(grpc::SslCredentials(options), timeout, address);
  }

  grpc::Status CallWith(const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                        absl::Duration timeout, size_t address = 0) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto stub = v1::GradClip::NewStub(
        grpc::CreateCustomChannel(server_->addresses()[address], credentials, arguments));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    v1::GetServerInfoResponse response;
    return stub->GetServerInfo(&context, {}, &response);
  }

  grpc::SslCredentialsOptions Trusting(const TestAuthority& authority) {
    return {.pem_root_certs = ReadFile(authority.ca_file()),
            .pem_private_key = "",
            .pem_cert_chain = ""};
  }
  grpc::SslCredentialsOptions Trusting(const TestAuthority& authority,
                                       const CertificateFiles& own) {
    return {.pem_root_certs = ReadFile(authority.ca_file()),
            .pem_private_key = ReadFile(own.key),
            .pem_cert_chain = ReadFile(own.cert)};
  }

  static constexpr absl::Duration kLong = absl::Seconds(30);
  // For what is refused: gRPC may also try again until then.
  static constexpr absl::Duration kShort = absl::Seconds(2);

  // Until new connections are answered as is to be: the server looks each second.
  template <typename Answered>
  static bool Eventually(Answered answered) {
    for (const absl::Time end = absl::Now() + kLong; absl::Now() < end;) {
      if (answered()) return true;
      absl::SleepFor(absl::Milliseconds(50));
    }
    return false;
  }

  TlsFolder folder_;
};

TEST_F(TlsServerTest, AnswersWhoTrustsItsAuthority) {
  Use(folder_.Server({.through_intermediate = true}));
  Serve();
  const grpc::Status status = Call(Trusting(folder_.authority), kLong);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(TlsServerTest, IsNotTrustedByOthersAndDoesNotSpeakPlaintext) {
  Serve();
  EXPECT_EQ(Call(Trusting(folder_.other), kLong).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CallWith(grpc::InsecureChannelCredentials(), kLong).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsServerTest, SpeaksPlaintextOnUnixSockets) {
  options_.listen.push_back("unix:" + folder_.path("socket"));
  Serve();
  EXPECT_TRUE(CallWith(grpc::InsecureChannelCredentials(), kLong, 1).ok());
  EXPECT_TRUE(Call(Trusting(folder_.authority), kLong, 0).ok());
}

TEST_F(TlsServerTest, TakesOnlyClientsOfItsAuthoritiesWhereItIsTold) {
  options_.tls_client_ca = folder_.authority.ca_file();
  Serve();
  const auto client = [](const CertificateRequest& request, TestAuthority& authority) {
    CertificateRequest wanted = request;
    wanted.is_client = true;
    return authority.Issue(wanted);
  };
  const CertificateFiles good = client({}, folder_.authority);
  EXPECT_TRUE(Call(Trusting(folder_.authority, good), kLong).ok());
  const CertificateFiles chained = client({.through_intermediate = true}, folder_.authority);
  EXPECT_TRUE(Call(Trusting(folder_.authority, chained), kLong).ok());

  EXPECT_FALSE(Call(Trusting(folder_.authority), kShort).ok());
  const CertificateFiles foreign = client({}, folder_.other);
  EXPECT_FALSE(Call(Trusting(folder_.authority, foreign), kShort).ok());
  const CertificateFiles expired = client({.valid_until = -absl::Minutes(1)}, folder_.authority);
  EXPECT_FALSE(Call(Trusting(folder_.authority, expired), kShort).ok());
  // A server's certificate is not for clients.
  EXPECT_FALSE(Call(Trusting(folder_.authority, folder_.Server()), kShort).ok());
  EXPECT_TRUE(Call(Trusting(folder_.authority, good), kLong).ok());
}

TEST_F(TlsServerTest, TakesRenewedFilesOverAmidACall) {
  Serve();
  stub_ = v1::GradClip::NewStub(grpc::CreateChannel(
      server_->addresses()[0], grpc::SslCredentials(Trusting(folder_.authority))));
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  ASSERT_TRUE(stream->Write(ClipStart(1, 4)));
  ASSERT_TRUE(stream->Write(Data(Bytes<float>({3, 0}))));

  CertificateRequest request;
  request.dns_names = {"localhost"};
  request.ip_addresses = {"127.0.0.1"};
  Use(folder_.other.Issue(request));
  EXPECT_TRUE(Eventually([&] { return Call(Trusting(folder_.other), kShort).ok(); }));
  EXPECT_FALSE(Call(Trusting(folder_.authority), kShort).ok());

  ASSERT_TRUE(stream->Write(Data(Bytes<float>({0, 4}))));
  stream->WritesDone();
  const Reply reply = Drain(*stream);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 5);
}

TEST_F(TlsServerTest, TakesRenewedAuthoritiesOver) {
  const std::string authorities = folder_.path("authorities");
  Replace(folder_.authority.ca_file(), authorities);
  options_.tls_client_ca = authorities;
  Serve();
  const CertificateFiles foreign = folder_.other.Issue({.is_client = true});
  EXPECT_FALSE(Call(Trusting(folder_.authority, foreign), kShort).ok());
  Replace(folder_.other.ca_file(), authorities);
  EXPECT_TRUE(Eventually([&] { return Call(Trusting(folder_.authority, foreign), kShort).ok(); }));
}

TEST_F(TlsServerTest, StaysWithWhatItHasWhileFilesCannotBeUsedAndSaysWhy) {
  LogFile log(folder_.path("log"));
  Serve(log.log());
  const auto stays_and_says = [&](const std::string& why) {
    return Eventually([&] {
      EXPECT_TRUE(Call(Trusting(folder_.authority), kLong).ok());
      return absl::StrContains(log.text(), why);
    });
  };
  // A new certificate, without its key: as in the midst of a renewal that takes two steps.
  Replace(folder_.Server().cert, options_.tls_cert);
  EXPECT_TRUE(stays_and_says("TLS certificate not renewed; what is in use stays")) << log.text();
  EXPECT_TRUE(stays_and_says("is not the key of the first certificate")) << log.text();
  std::filesystem::remove(options_.tls_cert);
  EXPECT_TRUE(stays_and_says("be read: No such file or directory")) << log.text();
  // gRPC looks once more.
  absl::SleepFor(absl::Milliseconds(1200));
  EXPECT_TRUE(Call(Trusting(folder_.authority), kLong).ok());
  server_.reset();
}

TEST_F(TlsServerTest, SaysThatTheCertificateInUseHasExpired) {
  LogFile log(folder_.path("log"));
  Use(folder_.Server({.valid_until = absl::Seconds(5)}));
  Serve(log.log());
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(log.text(), "has expired at"); }))
      << log.text();
  server_.reset();
}

TEST_F(TlsServerTest, DoesNotStartWithoutUsableFiles) {
  std::filesystem::remove(options_.tls_key);
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_, log_);
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(std::string(server.status().message()),
              HasSubstr("--tls-key=" + options_.tls_key + ": can't be read"));
}

TEST_F(TlsServerTest, KeepsNoDescriptor) {
  const auto count = [](const char* of) {
    const std::filesystem::directory_iterator entries(of);
    return std::distance(begin(entries), end(entries));
  };
  const auto once = [&] {
    Serve();
    EXPECT_TRUE(Call(Trusting(folder_.authority), kLong).ok());
    stub_.reset();
    channel_.reset();
    server_.reset();
  };
  once();  // what gRPC keeps
  const auto files = count("/proc/self/fd");
  for (int i = 0; i < 5; ++i) once();
  EXPECT_TRUE(Eventually([&] { return count("/proc/self/fd") <= files; }))
      << count("/proc/self/fd") << " descriptors, " << files << " before";
}

}  // namespace
}  // namespace gradclip
