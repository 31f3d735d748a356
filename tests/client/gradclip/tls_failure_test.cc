// TLS that fails: what is refused, by whom, and that every failure says what to do.
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/client/gradclip/fake_server.h"
#include "tests/client/gradclip/tls_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

CallOptions Within(absl::Duration timeout) {
  CallOptions call;
  call.timeout = timeout;
  return call;
}

class TlsFailureTest : public TlsTest {
 protected:
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(absl::StrCat(folder_, "/", name)) << text;
  }

  // What a client with these options, which are not used for any connection, says.
  absl::Status Refusal(const TlsOptions& tls) {
    return Client("127.0.0.1:1", With(tls)).CheckHealth();
  }
};

TEST_F(TlsFailureTest, RefusesACertificateThatHasExpired) {
  good_.valid_from = -absl::Hours(2);
  good_.valid_until = -absl::Hours(1);
  const absl::Status status = HealthOf(good_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("the server's certificate is not trusted: certificate has expired"),
                    HasSubstr("renewed")));
}

TEST_F(TlsFailureTest, RefusesACertificateThatIsNotYetValid) {
  good_.valid_from = absl::Hours(1);
  good_.valid_until = absl::Hours(2);
  const absl::Status status = HealthOf(good_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("not yet valid"), HasSubstr("clock")));
}

TEST_F(TlsFailureTest, RefusesAnotherName) {
  good_.dns_names = {"a.example", "b.example"};
  good_.ip_addresses = {"10.0.0.1", "::1"};
  for (const char* host : {"127.0.0.1", "localhost"}) {
    const absl::Status status = HealthOf(good_, host);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(
        status.message(),
        AllOf(HasSubstr(absl::StrCat("it is for \"a.example\", \"b.example\", \"10.0.0.1\", "
                                     "\"::1\", not for \"",
                                     host, "\"")),
              HasSubstr("TlsOptions::server_name (--tls-server-name)")));
  }
}

TEST_F(TlsFailureTest, DoesNotTakeTheCommonNameForAName) {
  good_.common_name = "localhost";
  good_.dns_names.clear();
  const absl::Status status = HealthOf(good_, "localhost");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  good_.ip_addresses.clear();
  EXPECT_THAT(HealthOf(good_, "localhost").message(), HasSubstr("the common name does not count"));
}

TEST_F(TlsFailureTest, RefusesAnotherAuthoritysCertificateAndDoesNotTryAgain) {
  FakeServer server("127.0.0.1:0", 0, Credentials(other_.Issue(good_)));
  const absl::Status status =
      Client(server.address(), With(Trusting(), /*max_retries=*/3)).GetServerInfo().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(server.address()), HasSubstr("unable to get local issuer"),
                    HasSubstr("TlsOptions::ca_file (--tls-ca)"), HasSubstr(authority_.ca_file()),
                    Not(HasSubstr("tried"))));
}

TEST_F(TlsFailureTest, RefusesAClientsCertificateAsAServers) {
  good_.is_client = true;
  EXPECT_EQ(HealthOf(good_).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TlsFailureTest, SaysThatTheServerWantsACertificate) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  for (int i = 0; i < 5; ++i) {
    const absl::Status status =
        Client(server.address(), With(Trusting(), /*max_retries=*/3)).GetServerInfo().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("TlsOptions::cert_file and key_file (--tls-cert, --tls-key)"),
                      Not(HasSubstr("tried"))));
  }
}

TEST_F(TlsFailureTest, SaysThatTheServerRefusedTheClientsCertificate) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  CertificateRequest request;
  request.is_client = true;
  const CertificateFiles own = authority_.Issue(request);
  TlsOptions tls = Trusting();
  tls.cert_file = own.cert;
  tls.key_file = own.key;
  const absl::Status status = Client(server.address(), With(tls)).CheckHealth();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("the server closed the connection on the client's certificate"),
                    HasSubstr(own.cert)));
}

// A server that, unlike gRPC's, says why it refuses.
TEST_F(TlsFailureTest, TellsTheServersAlert) {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const LoopbackServer server(OverTls(
        authority_.Issue(good_), [](SSL*) { ADD_FAILURE() << "hands were shaken"; },
        [&](SSL_CTX* context) {
          SSL_CTX_set_max_proto_version(context, version);
          SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
          SSL_CTX_load_verify_file(context, other_.ca_file().c_str());
        }));
    TlsOptions tls = Trusting();
    const absl::Status missing = Client(server.address(), With(tls)).CheckHealth();
    EXPECT_EQ(missing.code(), absl::StatusCode::kUnauthenticated) << missing;
    EXPECT_THAT(missing.message(), HasSubstr("--tls-cert"));

    CertificateRequest request;
    request.is_client = true;
    const CertificateFiles own = authority_.Issue(request);
    tls.cert_file = own.cert;
    tls.key_file = own.key;
    const absl::Status refused = Client(server.address(), With(tls)).CheckHealth();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnauthenticated) << refused;
    EXPECT_THAT(refused.message(), AllOf(HasSubstr(own.cert), HasSubstr("refused (unknown ca)")));
  }
}

TEST_F(TlsFailureTest, SaysThatTheServerDoesNotSpeakTls) {
  FakeServer server;
  const absl::Status status = Client(server.address(), With(Trusting())).CheckHealth();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(server.address()), HasSubstr("the server does not speak TLS")));
}

TEST_F(TlsFailureTest, SaysThatTheServerMayWantTls) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_)));
  for (int i = 0; i < 5; ++i) {
    const absl::Status status = Client(server.address()).CheckHealth();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(status.message(), HasSubstr("if it wants TLS, set ClientOptions::tls (--tls)"));
  }
  FakeServer plain;
  EXPECT_TRUE(Client(plain.address()).CheckHealth().ok());
}

TEST_F(TlsFailureTest, SaysThatTheServerSpeaksAnotherProtocol) {
  const LoopbackServer server(OverTls(
      authority_.Issue(good_), [](SSL*) {},
      [](SSL_CTX* context) { SSL_CTX_set_alpn_select_cb(context, nullptr, nullptr); }));
  const absl::Status status = Client(server.address(), With(Trusting())).CheckHealth();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("speaks TLS but not HTTP/2"));
}

TEST_F(TlsFailureTest, RefusesTlsOlderThan12) {
  const LoopbackServer server(OverTls(
      authority_.Issue(good_), [](SSL*) { ADD_FAILURE() << "hands were shaken"; },
      [](SSL_CTX* context) {
        SSL_CTX_set_min_proto_version(context, TLS1_VERSION);
        SSL_CTX_set_max_proto_version(context, TLS1_1_VERSION);
        SSL_CTX_set_security_level(context, 0);
      }));
  const absl::Status status = Client(server.address(), With(Trusting())).CheckHealth();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("protocol version"));
}

TEST_F(TlsFailureTest, SaysThatTheServerClosedDuringTheHandshake) {
  const LoopbackServer server([](int) {});
  const absl::Status status = Client(server.address(), With(Trusting())).CheckHealth();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("TLS handshake"));
}

TEST_F(TlsFailureTest, EndsAtTheDeadlineWhereTheServerHangsInTheHandshake) {
  const LoopbackServer server(&AwaitClosed);
  Client client(server.address(), With(Trusting()));
  const absl::Time start = absl::Now();
  const absl::Status status = client.CheckHealth(Within(absl::Milliseconds(300)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(status.message(), HasSubstr("no TLS handshake before the call's timeout"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(3));
}

// SETTINGS with the largest initial window, and as much for the connection: then only the sockets
// stop the client.
const std::string kEndlessWindow(
    "\0\0\6\4\0\0\0\0\0\0\4\x7f\xff\xff\xff"
    "\0\0\4\x8\0\0\0\0\0\x7f\xff\0\0",
    28);

// 64 MiB: more than sockets hold.
struct LargeGradient {
  std::vector<float> values = std::vector<float>(size_t{16} << 20, 1.0f);

  absl::StatusOr<ClipAnswer> Clip(Client& client, const CallOptions& call = {}) {
    const Tensor tensor = {
        "w", DType::kFloat32, {static_cast<int64_t>(values.size())}, values.data()};
    ClipOptions options;
    options.max_norm = 1;
    return client.Clip({&tensor, 1}, options, call);
  }
};

TEST_F(TlsFailureTest, EndsAtTheDeadlineAndLetsGoOfTheMemoryWhereTheServerIsDeaf) {
  absl::Notification over;
  const LoopbackServer server(OverTls(authority_.Issue(good_), [&](SSL* session) {
    EXPECT_GT(SSL_write(session, kEndlessWindow.data(), kEndlessWindow.size()), 0);
    over.WaitForNotification();
  }));
  LargeGradient gradient;
  {
    Client client(server.address(), With(Trusting()));
    const absl::Time start = absl::Now();
    const absl::Status status = gradient.Clip(client, Within(absl::Seconds(2))).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    // 2 s and the grace; sanitizers are slow.
    EXPECT_LT(absl::Now() - start, absl::Seconds(10));
    gradient.values.clear();
    gradient.values.shrink_to_fit();  // which AddressSanitizer watches
  }
  over.Notify();
}

TEST_F(TlsFailureTest, SaysThatTheServerClosedAmidTheCall) {
  // SETTINGS, and then the end while the client sends.
  const LoopbackServer server(OverTls(authority_.Issue(good_), [&](SSL* session) {
    EXPECT_GT(SSL_write(session, kEndlessWindow.data(), kEndlessWindow.size()), 0);
    std::vector<char> bytes(size_t{1} << 16);
    for (int i = 0; i < 100; ++i) SSL_read(session, bytes.data(), static_cast<int>(bytes.size()));
  }));
  LargeGradient gradient;
  Client client(server.address(), With(Trusting()));
  const absl::Time start = absl::Now();
  const absl::Status status = gradient.Clip(client, Within(absl::Seconds(20))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(15));
}

TEST_F(TlsFailureTest, GivesTheStatusOfAServerThatEndsTheCallWhileTheClientWrites) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_)));
  server.clip = [](ClipStream&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too much: --max-call-bytes");
  };
  LargeGradient gradient;
  Client client(server.address(), With(Trusting()));
  for (int round = 0; round < 3; ++round) {
    const absl::Status status = gradient.Clip(client).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  }
}

TEST_F(TlsFailureTest, SaysThatTheConnectionWasLost) {
  absl::Notification under_way, over;
  const LoopbackServer server(OverTls(authority_.Issue(good_), [&](SSL* session) {
    EXPECT_GT(SSL_write(session, kEndlessWindow.data(), kEndlessWindow.size()), 0);
    char bytes[4096];
    SSL_read(session, bytes, sizeof(bytes));
    const linger reset = {.l_onoff = 1, .l_linger = 0};  // close() then resets it
    setsockopt(SSL_get_fd(session), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  }));
  Client client(server.address(), With(Trusting()));
  const absl::Status status = client.CheckHealth(Within(absl::Seconds(20)));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("the TLS connection was lost: Connection reset by peer"));
}

TEST_F(TlsFailureTest, IsUnavailableWhereWhatComesIsNoTls) {
  const LoopbackServer server(OverTls(authority_.Issue(good_), [&](SSL* session) {
    EXPECT_GT(SSL_write(session, kEndlessWindow.data(), kEndlessWindow.size()), 0);
    const std::string forged = std::string("\x17\x03\x03\x00\x20", 5) + std::string(32, 'x');
    EXPECT_EQ(send(SSL_get_fd(session), forged.data(), forged.size(), 0),
              static_cast<ssize_t>(forged.size()));
    AwaitClosed(SSL_get_fd(session));
  }));
  Client client(server.address(), With(Trusting()));
  const absl::Status status = client.CheckHealth(Within(absl::Seconds(20)));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), HasSubstr("the TLS connection failed: "));
}

TEST_F(TlsFailureTest, RefusesFilesThatItCannotUse) {
  const CertificateFiles own = authority_.Issue({});
  const CertificateFiles others = authority_.Issue({});
  Write("text", "no certificate\n");
  Write("empty", "");
  const std::string text = folder_ + "/text";
  const std::string cert_option = "TlsOptions::cert_file (--tls-cert) \"";
  const std::string key_option = "TlsOptions::key_file (--tls-key) \"";
  const struct {
    TlsOptions tls;
    std::string message;
  } cases[] = {
      {{"/no/such", "", "", ""},
       "TlsOptions::ca_file (--tls-ca) \"/no/such\": No such file or directory"},
      {{folder_, "", "", ""}, "it is no regular file"},
      {{folder_ + "/empty", "", "", ""}, "the file is empty"},
      {{text, "", "", ""}, "it holds no certificate in PEM that can be read"},
      {{"", own.cert, "", ""}, "TlsOptions::cert_file (--tls-cert) is given without"},
      {{"", "", own.key, ""}, "TlsOptions::key_file (--tls-key) is given without"},
      {{"", "/no/such", own.key, ""}, cert_option + "/no/such\": No such file or directory"},
      {{"", text, own.key, ""}, cert_option + text + "\": it holds no certificate"},
      {{"", own.cert, "/no/such", ""}, key_option + "/no/such\": No such file or directory"},
      {{"", own.cert, text, ""}, key_option + text + "\": it holds no private key"},
      {{"", own.cert, others.key, ""}, "the key is not that of the certificate in"},
  };
  for (const auto& one : cases) {
    const absl::Status status = Refusal(one.tls);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr(one.message));
  }
}

TEST_F(TlsFailureTest, RefusesAKeyWithAPassphraseAndAsksNobodyForIt) {
  const CertificateFiles own = authority_.Issue({});
  const std::unique_ptr<BIO, decltype(&BIO_free)> plain(BIO_new_file(own.key.c_str(), "r"),
                                                        &BIO_free);
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
      PEM_read_bio_PrivateKey(plain.get(), nullptr, nullptr, nullptr), &EVP_PKEY_free);
  const std::string path = folder_ + "/encrypted.key";
  {
    const std::unique_ptr<BIO, decltype(&BIO_free)> file(BIO_new_file(path.c_str(), "w"),
                                                         &BIO_free);
    ASSERT_EQ(PEM_write_bio_PrivateKey(file.get(), key.get(), EVP_aes_128_cbc(), nullptr, 0,
                                       nullptr, const_cast<char*>("secret")),
              1);
  }
  const absl::Status status = Refusal({"", own.cert, path, ""});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("without a passphrase"));
}

}  // namespace
}  // namespace gradclip
