// The gradclip command and a server with TLS.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/tls_fixture.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TlsCommand : public TlsTest {
 protected:
  // Its exit status, and what it printed.
  static std::pair<int, std::string> Run(std::vector<std::string> arguments,
                                         const std::string& address,
                                         const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), {"--server", address, "--timeout", "20s"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    Process command("gradclip", arguments);
    const int status = command.Wait();
    return {status, command.out() + command.err()};
  }
};

TEST_F(TlsCommand, SpeaksTlsWithEveryVerb) {
  good_.dns_names = {"gradclip.example"};
  good_.ip_addresses.clear();
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  server.info = [](v1::GetServerInfoResponse& response) {
    response.set_version("1.2.3");
    return grpc::Status::OK;
  };
  server.compute_norm = [](NormStream& stream, v1::ComputeNormResponse& response) {
    ReadAll(stream);
    response.mutable_norm()->set_total_norm(5);
    return grpc::Status::OK;
  };
  server.clip = [](ClipStream& stream) {
    ReadAll(stream);
    SendResult(stream, 0.5);
    return grpc::Status::OK;
  };
  CertificateRequest request;
  request.is_client = true;
  const CertificateFiles own = other_.Issue(request);
  const std::vector<std::string> flags = {
      "--tls-ca", authority_.ca_file(), "--tls-cert",      own.cert, "--tls-key",
      own.key,    "--tls-server-name",  "gradclip.example"};
  const std::string gradient = GRADCLIP_TEST_DATA "/gradients/step-060.safetensors";
  const std::vector<std::vector<std::string>> verbs = {
      {"health"},
      {"info"},
      {"norm", gradient},
      {"clip", gradient, "--max-norm", "1", "--out", folder_ + "/out.safetensors"},
      {"bench", "--bytes", "4KiB"}};
  for (const auto& verb : verbs) {
    const auto [status, printed] = Run(verb, server.address(), flags);
    EXPECT_EQ(status, 0) << verb[0] << ": " << printed;
  }
}

TEST_F(TlsCommand, NamesTheFlagsWhereItFails) {
  FakeServer server("127.0.0.1:0", 0, Credentials(authority_.Issue(good_), other_.ca_file()));
  FakeServer plain;
  const std::string ca = authority_.ca_file();
  const struct {
    std::string address;
    std::vector<std::string> flags;
    std::string message;
  } cases[] = {
      {server.address(), {}, "(--tls)"},
      {server.address(), {"--tls"}, "(--tls-ca)"},
      {server.address(), {"--tls-ca", ca}, "(--tls-cert, --tls-key)"},
      {server.address(), {"--tls-ca", ca, "--tls-server-name", "x"}, "(--tls-server-name)"},
      {server.address(), {"--tls-ca", "/no/such"}, "(--tls-ca) \"/no/such\": No such file"},
      {server.address(), {"--tls-ca", ca, "--tls-key", "k"}, "(--tls-key) is given without"},
      {plain.address(), {"--tls"}, "the server does not speak TLS"},
  };
  for (const auto& one : cases) {
    const auto [status, printed] = Run({"info"}, one.address, one.flags);
    EXPECT_EQ(status, 1);
    EXPECT_THAT(printed, AllOf(HasSubstr(one.address), HasSubstr(one.message)));
  }
}

}  // namespace
}  // namespace gradclip
