// The command and a server that wants TLS and tokens, as an operator sets them up.
#include <csignal>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/e2e/command_fixture.h"
#include "tests/server/security/token_hash.h"
#include "tests/tls/certificates.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Security : public testing::Test {
 protected:
  Security() {
    Write("token", "the-secret-token\n");
    Write("tokens", absl::StrCat("trainer ", HashOf("the-secret-token"), "\n"));
    CertificateRequest request;
    request.ip_addresses = {"127.0.0.1"};
    certificate_ = authority_.Issue(request);
  }

  std::string Path(const std::string& name) const { return folder_ / name; }
  void Write(const std::string& name, const std::string& text) const {
    WriteFile(Path(name), text);
  }

  // Its exit status, and all that it prints.
  static std::pair<int, std::string> Run(const std::string& program,
                                         const std::vector<std::string>& arguments) {
    Process process(program, arguments);
    const int status = process.Wait();
    return {status, process.out() + process.err()};
  }

  const Folder folder_;
  TestAuthority authority_{folder_ / "authority", "ours"};
  CertificateFiles certificate_;
};

TEST_F(Security, ACallNeedsTlsAndAToken) {
  ServerProcess server({"--tls-cert=" + certificate_.cert, "--tls-key=" + certificate_.key,
                        "--auth-token-file=" + Path("tokens"), "--log-level=debug"});
  const std::vector<std::string> norm = {"norm", kGradients + "step-060.safetensors", "--server",
                                         server.address(), "--timeout=20s"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), norm.begin(), norm.end());
    return Run("gradclip", more);
  };
  const std::string ca = "--tls-ca=" + authority_.ca_file();
  const std::string token = "--token-file=" + Path("token");
  const auto [status, out] = with({ca, token});
  EXPECT_EQ(status, 0) << out;
  EXPECT_THAT(out, HasSubstr("total norm"));

  const auto [without_status, without] = with({ca});
  EXPECT_NE(without_status, 0);
  EXPECT_THAT(without, AllOf(HasSubstr("has no token"), HasSubstr("--token-file")));
  Write("other", "the-other-token");
  const auto [other_status, other] = with({ca, "--token-file=" + Path("other")});
  EXPECT_NE(other_status, 0);
  EXPECT_THAT(other, HasSubstr("is not known here"));
  const auto [plain_status, plain] = with({token});
  EXPECT_NE(plain_status, 0);
  const auto [missing_status, missing] = with({ca, "--token-file=" + Path("missing")});
  EXPECT_NE(missing_status, 0);
  EXPECT_THAT(missing, HasSubstr("can't be read: No such file or directory"));

  // Secrets are nowhere: not in what anybody prints, nor in the command line.
  const std::string command_line =
      ReadFile(absl::StrCat("/proc/", server.process().pid(), "/cmdline"));
  EXPECT_THAT(command_line, HasSubstr("--auth-token-file"));
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  const std::string log = server.process().out() + server.process().err();
  EXPECT_THAT(log, AllOf(HasSubstr(" by trainer "), HasSubstr("UNAUTHENTICATED")));
  const std::string key = ReadFile(certificate_.key).substr(40, 40);  // amid its first line
  const std::string all = absl::StrCat(out, without, other, plain, missing, command_line, log);
  for (const std::string& secret : {std::string("the-secret-token"), std::string("the-other-token"),
                                    HashOf("the-secret-token"), HashOf("the-other-token"), key}) {
    EXPECT_THAT(all, Not(HasSubstr(secret)));
  }
}

TEST_F(Security, HealthAnswersWithoutAToken) {
  ServerProcess server({"--tls-cert=" + certificate_.cert, "--tls-key=" + certificate_.key,
                        "--auth-token-file=" + Path("tokens")});
  const auto [status, out] = Run("gradclip", {"health", "--server", server.address(), "--tls-ca",
                                              authority_.ca_file(), "--timeout=20s"});
  EXPECT_EQ(status, 0) << out;
}

TEST_F(Security, AServerSaysWhatItCannotStartWith) {
  const auto [beyond_status, beyond] = Run("gradclip-server", {"--listen=0.0.0.0:0"});
  EXPECT_EQ(beyond_status, 1);
  EXPECT_EQ(beyond,
            "gradclip-server: --listen=0.0.0.0:0: expected TLS (--tls-cert and --tls-key) for an "
            "address that other machines can reach, or --insecure where the network between is "
            "trusted\n");
  const auto [missing_status, missing] =
      Run("gradclip-server",
          {"--listen=127.0.0.1:0", "--tls-cert=/nowhere/cert", "--tls-key=/nowhere/key"});
  EXPECT_EQ(missing_status, 1);
  EXPECT_EQ(
      missing,
      "gradclip-server: --tls-cert=/nowhere/cert: can't be read: No such file or directory\n");
}

}  // namespace
}  // namespace gradclip
