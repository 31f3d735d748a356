// Calls over TLS: who is trusted, and that bytes and connections are what they are without it.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gradclip/client.h"
#include "tests/client/gradclip/fake_server.h"
#include "tests/client/gradclip/tls_fixture.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

class TlsClient : public TlsTest {
 protected:
  FakeServer Serve() { return FakeServer("127.0.0.1:0", 0, Credentials(authority_.Issue(good_))); }
};

TEST_F(TlsClient, TrustsTheRightCertificateByNameAndByAddress) {
  for (const char* host : {"localhost", "127.0.0.1"}) {
    const absl::Status health = HealthOf(good_, host);
    EXPECT_TRUE(health.ok()) << host << ": " << health;
  }
}

TEST_F(TlsClient, AsksForTheNameThatItIsGiven) {
  good_.dns_names = {"gradclip.example"};
  good_.ip_addresses.clear();
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_)));
  TlsOptions tls = Trusting();
  EXPECT_FALSE(Client(server.address(), With(tls)).CheckHealth().ok());
  tls.server_name = "gradclip.example";
  const absl::Status health = Client(server.address(), With(tls)).CheckHealth();
  EXPECT_TRUE(health.ok()) << health;
}

TEST_F(TlsClient, FollowsTheChainThroughAnIntermediate) {
  good_.through_intermediate = true;
  const absl::Status health = HealthOf(good_);
  EXPECT_TRUE(health.ok()) << health;
}

TEST_F(TlsClient, TrustsTheSystemsAuthoritiesWhereNoneIsNamed) {
  FakeServer server = Serve();
  EXPECT_EQ(Client(server.address(), With({})).CheckHealth().code(),
            absl::StatusCode::kFailedPrecondition);
  setenv("SSL_CERT_FILE", authority_.ca_file().c_str(), 1);
  const absl::Status health = Client(server.address(), With({})).CheckHealth();
  unsetenv("SSL_CERT_FILE");
  EXPECT_TRUE(health.ok()) << health;
}

TEST_F(TlsClient, ShowsItsCertificateToAServerThatWantsIt) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  CertificateRequest request;
  request.is_client = true;
  TlsOptions tls = Trusting();
  for (const bool through_intermediate : {false, true}) {
    request.through_intermediate = through_intermediate;
    const CertificateFiles own = other_.Issue(request);
    tls.cert_file = own.cert;
    tls.key_file = own.key;
    const absl::Status health = Client(server.address(), With(tls)).CheckHealth();
    EXPECT_TRUE(health.ok()) << health;
  }
}

TEST_F(TlsClient, UsesRenewedFilesForTheNextConnection) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  CertificateRequest request;
  request.is_client = true;
  request.file_stem = "client";
  const CertificateFiles own = authority_.Issue(request);
  TlsOptions tls = Trusting();
  tls.cert_file = own.cert;
  tls.key_file = own.key;
  Client client(server.address(), With(tls));
  EXPECT_FALSE(client.CheckHealth().ok());
  other_.Issue(request);
  const absl::Status health = client.CheckHealth();
  EXPECT_TRUE(health.ok()) << health;
}

TEST_F(TlsClient, UsesNoTlsOverAUnixSocket) {
  const std::string address = absl::StrCat("unix:", folder_, "/server.sock");
  FakeServer server(address);
  const absl::Status health = Client(address, With(Trusting())).CheckHealth();
  EXPECT_TRUE(health.ok()) << health;
}

TEST_F(TlsClient, Carries64MiBBothWaysToTheLastBit) {
  FakeServer server = Serve();
  server.clip = [](ClipStream& stream) {
    const auto received = ReadAll(stream);
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    for (std::string message : received.messages) {
      for (char& byte : message) byte = static_cast<char>(byte ^ 0x55);
      SendData(stream, message);
    }
    return grpc::Status::OK;
  };
  std::vector<uint32_t> values(size_t{16} << 20);
  const auto value = [](size_t i) { return static_cast<uint32_t>(i * 2654435761u + (i >> 7)); };
  for (size_t i = 0; i < values.size(); ++i) values[i] = value(i);
  const Tensor tensor = {
      "w", DType::kFloat32, {static_cast<int64_t>(values.size())}, values.data()};
  ClipOptions options;
  options.max_norm = 1;
  options.reply = ReplyMode::kGradient;
  Client client(server.address(), With(Trusting()));
  const auto answer = client.Clip({&tensor, 1}, options);
  ASSERT_TRUE(answer.ok()) << answer.status();
  size_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) wrong += values[i] != (value(i) ^ 0x55555555u);
  EXPECT_EQ(wrong, 0u);
}

TEST_F(TlsClient, CarriesBothWaysAtOnce) {
  // The server answers each message as it comes: neither side waits for the other's end.
  FakeServer server = Serve();
  server.clip = [](ClipStream& stream) {
    v1::ClipGradNormRequest request;
    bool first = true;
    while (stream.Read(&request)) {
      if (first) SendResult(stream, 0.5, /*gradient_follows=*/true);
      first = false;
      if (request.has_data()) SendData(stream, request.data());
    }
    return grpc::Status::OK;
  };
  std::vector<float> values(size_t{8} << 20, 3.0f);
  const Tensor tensor = {
      "w", DType::kFloat32, {static_cast<int64_t>(values.size())}, values.data()};
  ClipOptions options;
  options.max_norm = 1;
  options.reply = ReplyMode::kGradient;
  options.total_norm = 2;
  Client client(server.address(), With(Trusting()));
  const auto answer = client.Clip({&tensor, 1}, options);
  EXPECT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(values[values.size() - 1], 3.0f);
}

TEST_F(TlsClient, TakesAnIdleConnectionAgain) {
  FakeServer server = Serve();
  Client client(server.address(), With(Trusting()));
  EXPECT_TRUE(client.CheckHealth().ok());
  // The certificates that a new connection would need are gone.
  std::filesystem::remove(authority_.ca_file());
  EXPECT_TRUE(client.CheckHealth().ok());
}

TEST_F(TlsClient, FindsTheServerAgainAfterItsRestart) {
  const auto credentials = Credentials(authority_.Issue(good_));
  auto server = std::make_unique<FakeServer>("127.0.0.1:0", 0, credentials);
  const std::string address = server->address();
  Client client(address, With(Trusting()));
  EXPECT_TRUE(client.CheckHealth().ok());
  server.reset();
  EXPECT_EQ(client.CheckHealth().code(), absl::StatusCode::kUnavailable);
  server = std::make_unique<FakeServer>(address, 0, credentials);
  const absl::Status health = client.CheckHealth();
  EXPECT_TRUE(health.ok()) << health;
}

// How many entries a folder of /proc/self has.
size_t Count(const char* folder) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    count += entry.path().empty() ? 0 : 1;
  }
  return count;
}

TEST_F(TlsClient, LeavesNoThreadAndNoDescriptor) {
  FakeServer server = Serve();
  const auto connect = [&] {
    Client client(server.address(), With(Trusting()));
    const absl::Status health = client.CheckHealth();
    EXPECT_TRUE(health.ok()) << health;
  };
  for (int i = 0; i < 10; ++i) connect();  // gRPC starts threads of its own
  absl::SleepFor(absl::Milliseconds(100));
  const size_t threads = Count("/proc/self/task");
  const size_t descriptors = Count("/proc/self/fd");
  for (int i = 0; i < 100; ++i) connect();
  // The server, in this process, closes its ends when it gets to it; gRPC's threads come and go.
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  const auto left = [&] {
    return Count("/proc/self/task") > threads + 4 || Count("/proc/self/fd") > descriptors;
  };
  while (left() && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LE(Count("/proc/self/task"), threads + 4);
  EXPECT_LE(Count("/proc/self/fd"), descriptors);
}

TEST_F(TlsClient, ServesManyThreadsAtOnce) {
  FakeServer server = Serve();
  Client client(server.address(), With(Trusting()));
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < 10; ++call) {
        const absl::Status health = client.CheckHealth();
        EXPECT_TRUE(health.ok()) << health;
      }
    });
  }
}

}  // namespace
}  // namespace gradclip
