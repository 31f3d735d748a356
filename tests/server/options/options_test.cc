#include "server/options/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/options/flags.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// On a machine of 16 GiB.
absl::StatusOr<Options> Parse(const std::vector<std::string>& flags,
                              const std::vector<std::string>& variables = {}) {
  std::vector<const char*> argv = {"gradclip-server"};
  argv.reserve(1 + flags.size());
  for (const std::string& flag : flags) argv.push_back(flag.c_str());
  std::vector<const char*> environment;
  environment.reserve(variables.size() + 1);
  for (const std::string& variable : variables) environment.push_back(variable.c_str());
  environment.push_back(nullptr);
  return ParseOptions(static_cast<int>(argv.size()), argv.data(), environment.data(), 16 * kGiB);
}

// The error, which is always of one line.
std::string Error(const std::vector<std::string>& flags,
                  const std::vector<std::string>& variables = {}) {
  const absl::StatusOr<Options> options = Parse(flags, variables);
  if (options.ok()) return "no error";
  EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
  std::string message(options.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

std::string Variable(const Flag& flag) {
  return "GRADCLIP_" + absl::AsciiStrToUpper(absl::StrReplaceAll(flag.name, {{"-", "_"}}));
}

TEST(Options, HaveTheirDefaultsWithoutAnyFlag) {
  const absl::StatusOr<Options> options = Parse({});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.1:50051"));
  EXPECT_EQ(options->backend, "auto");
  EXPECT_EQ(options->on_gpu_error, OnGpuError::kCpu);
  EXPECT_THAT(options->cuda_devices, IsEmpty());
  EXPECT_EQ(options->cuda_memory_budget.bytes, 0);
  EXPECT_EQ(options->cuda_memory_budget.percent, 80);
  EXPECT_EQ(options->memory_budget, 8 * kGiB);
  EXPECT_EQ(options->max_call_bytes, 8 * kGiB);
  EXPECT_EQ(options->max_message_bytes, uint64_t{8} << 20);
  EXPECT_EQ(options->max_tensors, 131072);
  EXPECT_EQ(options->max_dimensions, 64);
  EXPECT_EQ(options->admission_timeout, absl::Seconds(30));
  EXPECT_EQ(options->idle_timeout, absl::Seconds(60));
  EXPECT_EQ(options->drain_timeout, absl::Seconds(30));
  EXPECT_EQ(options->arena_trim_interval, absl::Seconds(60));
  EXPECT_EQ(options->metrics_listen, "");
  EXPECT_FALSE(options->metrics_per_job);
  EXPECT_EQ(options->log_format, LogFormat::kText);
  EXPECT_EQ(options->log_level, LogLevel::kInfo);
  EXPECT_THAT(options->warnings, IsEmpty());
  EXPECT_FALSE(options->print_and_exit.has_value());
}

TEST(Options, ReadEveryFlag) {
  const absl::StatusOr<Options> options = Parse({"--listen=0.0.0.0:1",
                                                 "--listen",
                                                 "[::1]:0",
                                                 "--listen=unix:/run/gradclip.sock",
                                                 "--backend=cpu/avx2",
                                                 "--on-gpu-error=fail",
                                                 "--cuda-devices=2,0",
                                                 "--cuda-memory-budget=6GiB",
                                                 "--memory-budget=4GiB",
                                                 "--max-call-bytes",
                                                 "1GiB",
                                                 "--max-message-bytes=1MiB",
                                                 "--max-tensors=7",
                                                 "--max-dimensions=3",
                                                 "--admission-timeout=500ms",
                                                 "--idle-timeout=5m",
                                                 "--drain-timeout=0",
                                                 "--arena-trim-interval=1h30m",
                                                 "--log-format=json",
                                                 "--log-level=error",
                                                 "--tls-cert=cert.pem",
                                                 "--tls-key=key.pem",
                                                 "--tls-client-ca=ca.pem",
                                                 "--auth-token-file=tokens",
                                                 "--insecure"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->listen, ElementsAre("0.0.0.0:1", "[::1]:0", "unix:/run/gradclip.sock"));
  EXPECT_EQ(options->backend, "cpu/avx2");
  EXPECT_EQ(options->on_gpu_error, OnGpuError::kFail);
  EXPECT_THAT(options->cuda_devices, ElementsAre(2, 0));
  EXPECT_EQ(options->cuda_memory_budget.bytes, 6 * kGiB);
  EXPECT_EQ(options->cuda_memory_budget.percent, 0);
  EXPECT_EQ(options->memory_budget, 4 * kGiB);
  EXPECT_EQ(options->max_call_bytes, kGiB);
  EXPECT_EQ(options->max_message_bytes, uint64_t{1} << 20);
  EXPECT_EQ(options->max_tensors, 7);
  EXPECT_EQ(options->max_dimensions, 3);
  EXPECT_EQ(options->admission_timeout, absl::Milliseconds(500));
  EXPECT_EQ(options->idle_timeout, absl::Minutes(5));
  EXPECT_EQ(options->drain_timeout, absl::ZeroDuration());
  EXPECT_EQ(options->arena_trim_interval, absl::Minutes(90));
  EXPECT_EQ(options->log_format, LogFormat::kJson);
  EXPECT_EQ(options->log_level, LogLevel::kError);
  EXPECT_EQ(options->tls_cert, "cert.pem");
  EXPECT_EQ(options->tls_key, "key.pem");
  EXPECT_EQ(options->tls_client_ca, "ca.pem");
  EXPECT_EQ(options->auth_token_file, "tokens");
  EXPECT_TRUE(options->insecure);
}

TEST(Options, ReadEveryVariable) {
  const absl::StatusOr<Options> options =
      Parse({}, {"GRADCLIP_LISTEN=0.0.0.0:1,[::1]:0,unix:/run/gradclip.sock",
                 "GRADCLIP_BACKEND=cpu",
                 "GRADCLIP_ON_GPU_ERROR=fail",
                 "GRADCLIP_CUDA_DEVICES=2,0",
                 "GRADCLIP_CUDA_MEMORY_BUDGET=6GiB",
                 "GRADCLIP_MEMORY_BUDGET=4GiB",
                 "GRADCLIP_MAX_CALL_BYTES=1GiB",
                 "GRADCLIP_MAX_MESSAGE_BYTES=1MiB",
                 "GRADCLIP_MAX_TENSORS=7",
                 "GRADCLIP_MAX_DIMENSIONS=3",
                 "GRADCLIP_ADMISSION_TIMEOUT=500ms",
                 "GRADCLIP_IDLE_TIMEOUT=5m",
                 "GRADCLIP_DRAIN_TIMEOUT=1s",
                 "GRADCLIP_ARENA_TRIM_INTERVAL=2s",
                 "GRADCLIP_LOG_FORMAT=json",
                 "GRADCLIP_LOG_LEVEL=debug",
                 "GRADCLIP_TLS_CERT=cert.pem",
                 "GRADCLIP_TLS_KEY=key.pem",
                 "GRADCLIP_TLS_CLIENT_CA=ca.pem",
                 "GRADCLIP_AUTH_TOKEN_FILE=tokens",
                 "GRADCLIP_INSECURE=true"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->listen, ElementsAre("0.0.0.0:1", "[::1]:0", "unix:/run/gradclip.sock"));
  EXPECT_EQ(options->backend, "cpu");
  EXPECT_EQ(options->on_gpu_error, OnGpuError::kFail);
  EXPECT_THAT(options->cuda_devices, ElementsAre(2, 0));
  EXPECT_EQ(options->cuda_memory_budget.bytes, 6 * kGiB);
  EXPECT_EQ(options->cuda_memory_budget.percent, 0);
  EXPECT_EQ(options->memory_budget, 4 * kGiB);
  EXPECT_EQ(options->max_call_bytes, kGiB);
  EXPECT_EQ(options->max_message_bytes, uint64_t{1} << 20);
  EXPECT_EQ(options->max_tensors, 7);
  EXPECT_EQ(options->max_dimensions, 3);
  EXPECT_EQ(options->admission_timeout, absl::Milliseconds(500));
  EXPECT_EQ(options->idle_timeout, absl::Minutes(5));
  EXPECT_EQ(options->drain_timeout, absl::Seconds(1));
  EXPECT_EQ(options->arena_trim_interval, absl::Seconds(2));
  EXPECT_EQ(options->log_format, LogFormat::kJson);
  EXPECT_EQ(options->log_level, LogLevel::kDebug);
  EXPECT_EQ(options->tls_cert, "cert.pem");
  EXPECT_EQ(options->tls_key, "key.pem");
  EXPECT_EQ(options->tls_client_ca, "ca.pem");
  EXPECT_EQ(options->auth_token_file, "tokens");
  EXPECT_TRUE(options->insecure);
  EXPECT_THAT(options->warnings, IsEmpty());
}

TEST(Options, FlagsWinOverVariables) {
  const absl::StatusOr<Options> options =
      Parse({"--listen=localhost:1", "--log-level=error"},
            {"GRADCLIP_LISTEN=localhost:2", "GRADCLIP_LOG_LEVEL=nonsense", "GRADCLIP_BACKEND=cpu"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->listen, ElementsAre("localhost:1"));
  EXPECT_EQ(options->log_level, LogLevel::kError);
  EXPECT_EQ(options->backend, "cpu");
}

TEST(Options, TakeAnEmptyVariableAsUnset) {
  const absl::StatusOr<Options> options = Parse({}, {"GRADCLIP_BACKEND=", "GRADCLIP_LISTEN="});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->backend, "auto");
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.1:50051"));
}

TEST(Options, TakeNoEmptyVariableForAFileThatProtects) {
  EXPECT_EQ(Error({}, {"GRADCLIP_AUTH_TOKEN_FILE="}),
            "GRADCLIP_AUTH_TOKEN_FILE=: expected a file's path");
  EXPECT_EQ(Error({}, {"GRADCLIP_TLS_CLIENT_CA="}),
            "GRADCLIP_TLS_CLIENT_CA=: expected a file's path");
}

TEST(Options, WarnOfTokensThatCrossANetworkUnencrypted) {
  const std::vector<std::string> flags = {"--listen=0.0.0.0:1", "--insecure",
                                          "--auth-token-file=tokens"};
  EXPECT_THAT(Parse(flags)->warnings, ElementsAre(HasSubstr("tokens (--auth-token-file) will")));
  EXPECT_THAT(Parse({"--auth-token-file=tokens"})->warnings, IsEmpty());
  EXPECT_THAT(
      Parse({"--listen=0.0.0.0:1", "--tls-cert=c", "--tls-key=k", "--auth-token-file=tokens"})
          ->warnings,
      IsEmpty());
}

TEST(Options, ReadTheProcessEnvironmentAndMachineWhereNothingElseIsGiven) {
  ASSERT_EQ(setenv("GRADCLIP_MAX_TENSORS", "11", 1), 0);
  const char* argv[] = {"gradclip-server"};
  const absl::StatusOr<Options> options = ParseOptions(1, argv);
  ASSERT_EQ(unsetenv("GRADCLIP_MAX_TENSORS"), 0);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->max_tensors, 11);
  EXPECT_GT(options->memory_budget, 0);
}

TEST(Options, ErrorsNameTheFlagTheValueAndWhatIsAllowed) {
  EXPECT_EQ(Error({"--max-message-bytes=3"}), "--max-message-bytes=3: expected 64 KiB to 1 GiB");
  EXPECT_EQ(Error({"--memory-budget=0"}), "--memory-budget=0: expected at least 1 B");
  EXPECT_THAT(
      Error({"--memory-budget=lots"}),
      AllOf(HasSubstr("--memory-budget=lots: expected a whole number of bytes"), HasSubstr("GiB")));
  EXPECT_EQ(Error({"--max-tensors=0"}), "--max-tensors=0: expected a whole number, 1 to 16777216");
  EXPECT_EQ(Error({"--max-tensors=ten"}),
            "--max-tensors=ten: expected a whole number, 1 to 16777216");
  EXPECT_EQ(Error({"--max-dimensions=1025"}),
            "--max-dimensions=1025: expected a whole number, 1 to 1024");
  EXPECT_EQ(Error({"--idle-timeout=0"}),
            "--idle-timeout=0: expected a duration such as 500ms, 30s or 5m, 1ms to 24h");
  EXPECT_EQ(Error({"--drain-timeout=30"}),
            "--drain-timeout=30: expected a duration such as 500ms, 30s or 5m, 0 to 24h");
  EXPECT_THAT(Error({"--admission-timeout=-1s"}), HasSubstr("0 to 24h"));
  EXPECT_THAT(Error({"--admission-timeout=inf"}), HasSubstr("0 to 24h"));
  EXPECT_EQ(Error({"--on-gpu-error=wait"}), "--on-gpu-error=wait: expected cpu, fail");
  EXPECT_EQ(Error({"--log-format=xml"}), "--log-format=xml: expected text, json");
  EXPECT_EQ(Error({"--log-level=trace"}),
            "--log-level=trace: expected debug, info, warning, error");
}

TEST(Options, TakeCudaDevicesByNumber) {
  EXPECT_THAT(Parse({"--cuda-devices=all"})->cuda_devices, IsEmpty());
  EXPECT_THAT(Parse({"--cuda-devices=0"})->cuda_devices, ElementsAre(0));
  EXPECT_THAT(Parse({"--cuda-devices=3,1,1023"})->cuda_devices, ElementsAre(3, 1, 1023));
  for (const char* value : {"0,", ",0", "0,0", "-1", "1024", "0 1", "gpu0", "0,all", "none"}) {
    EXPECT_EQ(Error({absl::StrCat("--cuda-devices=", value)}),
              absl::StrCat("--cuda-devices=", value,
                           ": expected all, or the numbers of devices, each once, with commas "
                           "between: 0 to 1023"));
  }
}

TEST(Options, TakeACudaMemoryBudgetInBytesOrAsAShareOfWhatIsFree) {
  for (const auto& [value, bytes, percent] :
       {std::tuple<const char*, uint64_t, uint64_t>{"1%", 0, 1},
        {"100%", 0, 100},
        {"512MiB", kGiB / 2, 0}}) {
    const absl::StatusOr<Options> options = Parse({absl::StrCat("--cuda-memory-budget=", value)});
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->cuda_memory_budget.bytes, bytes) << value;
    EXPECT_EQ(options->cuda_memory_budget.percent, percent) << value;
  }
  for (const char* value : {"0%", "101%", "%", "-1%", "8.5%"}) {
    EXPECT_EQ(Error({absl::StrCat("--cuda-memory-budget=", value)}),
              absl::StrCat("--cuda-memory-budget=", value, ": expected 1% to 100%"));
  }
  EXPECT_EQ(Error({"--cuda-memory-budget=0"}),
            "--cuda-memory-budget=0: expected 1% to 100%, or at least 1 B");
  EXPECT_THAT(
      Error({"--cuda-memory-budget=most"}),
      HasSubstr("--cuda-memory-budget=most: expected 1% to 100% of what is free, or a whole "
                "number of bytes"));
}

TEST(Options, ErrorsNameTheVariableWhereTheValueComesFromIt) {
  EXPECT_EQ(Error({}, {"GRADCLIP_LOG_FORMAT=xml"}), "GRADCLIP_LOG_FORMAT=xml: expected text, json");
  EXPECT_THAT(Error({}, {"GRADCLIP_LISTEN=localhost:1,,localhost:2"}),
              HasSubstr("GRADCLIP_LISTEN=: expected HOST:PORT"));
}

TEST(Options, ErrorsStayOnOneLineWhateverTheValue) {
  EXPECT_EQ(Error({"--log-format=a\nb"}), "--log-format=a\\nb: expected text, json");
  EXPECT_THAT(Error({"--new\nline"}), HasSubstr("unknown flag --new\\nline"));
  EXPECT_THAT(Error({"extra\nargument"}), HasSubstr("extra\\nargument"));
}

TEST(Options, SuggestTheClosestFlag) {
  EXPECT_EQ(Error({"--listn=localhost:1"}),
            "unknown flag --listn; did you mean --listen?; see --help");
  EXPECT_THAT(Error({"--max-tensor", "5"}), HasSubstr("did you mean --max-tensors?"));
  EXPECT_THAT(Error({"-listen=x"}), HasSubstr("did you mean --listen?"));
  EXPECT_EQ(Error({"--port=50051"}), "unknown flag --port; see --help");
}

TEST(Options, RefuseArgumentsThatAreNoFlags) {
  EXPECT_THAT(Error({"localhost:1"}), HasSubstr("unexpected argument localhost:1"));
}

TEST(Options, RefuseAFlagGivenTwiceOrWithoutAValue) {
  EXPECT_EQ(Error({"--backend=cpu", "--backend=auto"}),
            "--backend: given 2 times, last as auto: expected once");
  EXPECT_EQ(Error({"--backend"}), "--backend: 1 required NAME missing; see --help");
  EXPECT_EQ(Error({"--backend="}), "--backend: 1 required NAME missing; see --help");
  EXPECT_EQ(Error({"--backend", ""}), "--backend=: expected a backend's name, or auto");
}

TEST(Options, TakeOneValueAfterEachListen) {
  EXPECT_THAT(Error({"--listen", "localhost:1", "localhost:2"}),
              HasSubstr("unexpected argument localhost:2"));
}

TEST(Options, CheckAddresses) {
  for (const char* address : {"localhost:0", "example.org:65535", "[::1]:50051", "[fe80::1%eth0]:1",
                              "unix:/tmp/a,b", "unix:relative", "unix:///run/x"}) {
    EXPECT_TRUE(Parse({absl::StrCat("--listen=", address), "--insecure"}).ok()) << address;
  }
  for (const char* address :
       {"localhost", ":50051", "localhost:", "localhost:65536", "localhost:-1", "localhost:+1",
        "localhost:http", "::1:50051", "[]:1", "a b:1", "a:1,b:2", "http://a:1", "unix:"}) {
    EXPECT_THAT(Error({absl::StrCat("--listen=", address)}), HasSubstr("unix:PATH")) << address;
  }
  EXPECT_TRUE(Parse({"--listen=unix:" + std::string(107, 'x')}).ok());
  EXPECT_THAT(Error({"--listen=unix:" + std::string(108, 'x')}), HasSubstr("1 to 107 bytes"));
}

TEST(Options, TakeAnAddressForMetrics) {
  for (const char* address : {"localhost:0", "0.0.0.0:9090", "[::]:9090"}) {
    const absl::StatusOr<Options> options = Parse({absl::StrCat("--metrics-listen=", address)});
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->metrics_listen, address);
  }
  for (const char* address : {"9090", ":9090", "localhost:", "localhost:65536", "unix:/run/x",
                              "::1:9090", "http://localhost:9090", "a:1,b:2"}) {
    EXPECT_EQ(Error({absl::StrCat("--metrics-listen=", address)}),
              absl::StrCat("--metrics-listen=", address,
                           ": expected HOST:PORT or [IPV6]:PORT, with a port of 0 to 65535"));
  }
  EXPECT_EQ(Parse({}, {"GRADCLIP_METRICS_LISTEN=[::1]:0"})->metrics_listen, "[::1]:0");
  EXPECT_EQ(Parse({}, {"GRADCLIP_METRICS_LISTEN="})->metrics_listen, "");
}

TEST(Options, WarnOfMetricsPerJobWhereThereAreNone) {
  EXPECT_TRUE(Parse({"--metrics-listen=localhost:0", "--metrics-per-job"})->metrics_per_job);
  EXPECT_THAT(Parse({"--metrics-listen=localhost:0", "--metrics-per-job"})->warnings, IsEmpty());
  EXPECT_THAT(Parse({"--metrics-per-job"})->warnings,
              ElementsAre("--metrics-per-job has no effect: there are no metrics "
                          "(--metrics-listen=HOST:PORT)"));
}

TEST(Options, WantTlsForAddressesThatOtherMachinesCanReach) {
  for (const char* address : {"localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/x"}) {
    EXPECT_TRUE(Parse({absl::StrCat("--listen=", address)}).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1", "example.org:1",
                              "127.example.org:1", "localhost.example.org:1"}) {
    const std::string listen = absl::StrCat("--listen=", address);
    EXPECT_EQ(Error({"--listen=localhost:1", listen}),
              absl::StrCat(listen,
                           ": expected TLS (--tls-cert and --tls-key) for an address that other "
                           "machines can reach, or --insecure where the network between is "
                           "trusted"));
    EXPECT_TRUE(Parse({listen, "--insecure"}).ok()) << address;
    EXPECT_TRUE(Parse({listen, "--tls-cert=c", "--tls-key=k"}).ok()) << address;
    EXPECT_THAT(Error({listen, "--insecure=false"}), HasSubstr("expected TLS"));
  }
  EXPECT_THAT(Error({}, {"GRADCLIP_LISTEN=0.0.0.0:1"}), HasSubstr("GRADCLIP_LISTEN=0.0.0.0:1"));
}

TEST(Options, TlsNeedsACertificateAndItsKey) {
  EXPECT_EQ(Error({"--tls-cert=c"}), "--tls-cert=c: expected --tls-key beside it");
  EXPECT_EQ(Error({"--tls-key=k"}), "--tls-key=k: expected --tls-cert beside it");
  EXPECT_EQ(Error({"--tls-client-ca=a"}), "--tls-client-ca=a: expected --tls-cert beside it");
  EXPECT_EQ(Error({"--tls-cert="}), "--tls-cert: 1 required FILE missing; see --help");
  EXPECT_EQ(Error({"--tls-cert", ""}), "--tls-cert=: expected a file's path");
  EXPECT_TRUE(Parse({"--tls-cert=c", "--tls-key=k", "--tls-client-ca=a"}).ok());
}

TEST(Options, TakeSwitchesWithOrWithoutTheirValue) {
  EXPECT_FALSE(Parse({})->insecure);
  EXPECT_TRUE(Parse({"--insecure"})->insecure);
  EXPECT_TRUE(Parse({"--insecure=1"})->insecure);
  EXPECT_FALSE(Parse({"--insecure=false"})->insecure);
  EXPECT_FALSE(Parse({"--insecure=false"}, {"GRADCLIP_INSECURE=true"})->insecure);
  EXPECT_EQ(Error({"--insecure=maybe"}), "--insecure=maybe: expected true, false, 1, 0");
}

TEST(Options, RefuseAnAddressGivenTwice) {
  EXPECT_EQ(Error({"--listen=unix:/run/x", "--listen=localhost:1", "--listen=unix:/run/x"}),
            "--listen=unix:/run/x: expected every address once");
  EXPECT_EQ(Error({}, {"GRADCLIP_LISTEN=a:10,a:10"}),
            "GRADCLIP_LISTEN=a:10: expected every address once");
  EXPECT_TRUE(Parse({"--listen=localhost:0", "--listen=localhost:0"}).ok());  // two free ports
}

TEST(Options, KeepTheCallWithinTheBudget) {
  EXPECT_EQ(Parse({"--memory-budget=2GiB"})->max_call_bytes, 2 * kGiB);
  EXPECT_EQ(Parse({"--memory-budget=2GiB", "--max-call-bytes=2GiB"})->max_call_bytes, 2 * kGiB);
  EXPECT_EQ(Error({"--memory-budget=2GiB", "--max-call-bytes=3GiB"}),
            "--max-call-bytes=3GiB: expected at most the memory budget, 2 GiB (--memory-budget)");
  EXPECT_EQ(Error({}, {"GRADCLIP_MAX_CALL_BYTES=9GiB"}),
            "GRADCLIP_MAX_CALL_BYTES=9GiB: expected at most the memory budget, 8 GiB "
            "(--memory-budget)");
}

TEST(Options, WarnOfABudgetOverTheMachine) {
  EXPECT_THAT(Parse({"--memory-budget=16GiB"})->warnings, IsEmpty());
  EXPECT_THAT(Parse({}, {"GRADCLIP_MEMORY_BUDGET=17GiB"})->warnings,
              ElementsAre("the memory budget of 17 GiB (GRADCLIP_MEMORY_BUDGET) is more than the "
                          "16 GiB that this machine or container has"));
}

TEST(Options, WarnOfUnknownVariablesOfOurs) {
  const absl::StatusOr<Options> options =
      Parse({}, {"GRADCLIP_LISTN=x", "GRADCLIP_SERVER=localhost:1", "PATH=/bin", "GRADCLIPPER=1",
                 "GRADCLIP_COMPLETELY_DIFFERENT=\x01", "NOVALUE"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(
      options->warnings,
      ElementsAre("environment variable GRADCLIP_LISTN is not known and has no effect; did you "
                  "mean GRADCLIP_LISTEN?",
                  "environment variable GRADCLIP_COMPLETELY_DIFFERENT is not known and has no "
                  "effect"));
}

TEST(Options, HelpStatesEveryFlagItsVariableAndItsDefault) {
  const absl::StatusOr<Options> options = Parse({"--help"});
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->print_and_exit.has_value());
  const std::string& help = *options->print_and_exit;
  for (const Flag& flag : AllFlags()) {
    EXPECT_THAT(help, HasSubstr(absl::StrCat("--", flag.name, flag.value.empty() ? "\n" : " ",
                                             flag.value)));
    EXPECT_THAT(help, HasSubstr(absl::StrCat("Default: ", flag.default_text,
                                             ". Variable: ", Variable(flag))));
  }
  for (const char* stated : {"KiB, MiB, GiB, TiB", "30s, 5m", "--version"}) {
    EXPECT_THAT(help, HasSubstr(stated));
  }
  EXPECT_EQ(help.back(), '\n');
}

TEST(Options, LimitsOfOneCallerArePartsOfThoseOfAll) {
  const absl::StatusOr<Options> alone = Parse(
      {"--memory-budget=1GiB", "--max-calls=10", "--max-waiting-calls=5", "--max-connections=8"});
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->max_bytes_per_caller, uint64_t{1} << 30);
  EXPECT_EQ(alone->max_calls_per_caller, 5U);
  EXPECT_EQ(alone->max_waiting_calls_per_caller, 2U);
  EXPECT_EQ(alone->max_connections_per_peer, 2U);
  EXPECT_EQ(alone->max_transport_bytes, uint64_t{256} << 20);

  // Where callers are told apart, one can't keep the others out of the budget.
  const absl::StatusOr<Options> tokens =
      Parse({"--memory-budget=8GiB", "--auth-token-file=tokens", "--max-calls=1"});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->max_bytes_per_caller, uint64_t{4} << 30);
  EXPECT_EQ(tokens->max_calls_per_caller, 1U);
  EXPECT_EQ(tokens->max_transport_bytes, uint64_t{1} << 30);
  EXPECT_EQ(tokens->max_connection_age, absl::ZeroDuration());
  EXPECT_TRUE(tokens->reflection);

  const absl::StatusOr<Options> tls = Parse({"--tls-cert=c", "--tls-key=k", "--tls-client-ca=a"});
  ASSERT_TRUE(tls.ok()) << tls.status();
  EXPECT_EQ(tls->max_bytes_per_caller, tls->memory_budget / 2);
  EXPECT_EQ(tls->max_connection_age, absl::Hours(1));
  EXPECT_FALSE(tls->reflection);

  for (const auto& [one, all] : std::vector<std::pair<std::string, std::string>>{
           {"--max-calls-per-caller", "--max-calls"},
           {"--max-waiting-calls-per-caller", "--max-waiting-calls"},
           {"--max-connections-per-peer", "--max-connections"},
           {"--max-bytes-per-caller", "--memory-budget"}}) {
    EXPECT_TRUE(Parse({one + "=2", all + "=2"}).ok());
    const absl::Status refused = Parse({one + "=3", all + "=2"}).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()),
                AllOf(HasSubstr(one + "=3"), HasSubstr("2 (" + all + ")")));
  }
}

TEST(Options, UsersOfUnixSocketsAreListedByNumber) {
  const absl::StatusOr<Options> two =
      Parse({"--listen=unix:/tmp/x", "--unix-socket-uids=1", "--unix-socket-uids=1000"});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->unix_socket_uids, (std::vector<uid_t>{1, 1000}));
  EXPECT_TRUE(two->warnings.empty());
  EXPECT_EQ(two->max_bytes_per_caller, two->memory_budget / 2);

  // An empty variable is no list of nobody, and none of everybody.
  EXPECT_FALSE(Parse({}, {"GRADCLIP_UNIX_SOCKET_UIDS="}).ok());
  EXPECT_FALSE(Parse({"--unix-socket-uids=me"}).ok());

  const absl::StatusOr<Options> pointless = Parse({"--unix-socket-uids=1"});
  ASSERT_TRUE(pointless.ok()) << pointless.status();
  ASSERT_EQ(pointless->warnings.size(), 1U);
  EXPECT_THAT(pointless->warnings[0], HasSubstr("--unix-socket-uids has no effect"));

  std::vector<std::string> many = {"--listen=unix:/tmp/x"};
  for (size_t uid = 0; uid < kMaxUnixUsers; ++uid) {
    many.push_back("--unix-socket-uids=" + std::to_string(uid));
  }
  EXPECT_TRUE(Parse(many).ok());
  many.push_back("--unix-socket-uids=1000");
  EXPECT_THAT(std::string(Parse(many).status().message()), HasSubstr("at most 64 users"));
}

TEST(Options, DefaultsThatHelpStatesAreThoseThatHold) {
  for (const Flag& flag : AllFlags()) {
    const absl::string_view in_words[] = {"memory-budget",
                                          "max-call-bytes",
                                          "memory-socket",
                                          "memory-socket-uids",
                                          "max-shared-bytes",
                                          "max-shared-bytes-per-peer",
                                          "compute-threads",
                                          "tls-cert",
                                          "tls-key",
                                          "tls-client-ca",
                                          "auth-token-file",
                                          "unix-socket-uids",
                                          "allow",
                                          "reflection",
                                          "channelz",
                                          "max-bytes-per-caller",
                                          "max-calls-per-caller",
                                          "max-waiting-calls-per-caller",
                                          "max-connections-per-peer",
                                          "max-transport-bytes",
                                          "max-connection-age",
                                          "group-store-password-file",
                                          "metrics-listen"};
    if (std::count(std::begin(in_words), std::end(in_words), flag.name) > 0) continue;
    const absl::StatusOr<Options> defaults = Parse({});
    const absl::StatusOr<Options> stated =
        Parse({absl::StrCat("--", flag.name, "=", flag.default_text)});
    ASSERT_TRUE(stated.ok()) << stated.status();
    EXPECT_EQ(stated->listen, defaults->listen);
    EXPECT_EQ(stated->insecure, defaults->insecure);
    EXPECT_EQ(stated->backend, defaults->backend);
    EXPECT_EQ(stated->max_message_bytes, defaults->max_message_bytes);
    EXPECT_EQ(stated->open_health, defaults->open_health);
    EXPECT_EQ(stated->max_calls, defaults->max_calls);
    EXPECT_EQ(stated->max_waiting_calls, defaults->max_waiting_calls);
    EXPECT_EQ(stated->max_connections, defaults->max_connections);
    EXPECT_EQ(stated->max_streams_per_connection, defaults->max_streams_per_connection);
    EXPECT_EQ(stated->max_resets, defaults->max_resets);
    EXPECT_EQ(stated->max_metadata_bytes, defaults->max_metadata_bytes);
    EXPECT_EQ(stated->handshake_timeout, defaults->handshake_timeout);
    EXPECT_EQ(stated->connection_idle_timeout, defaults->connection_idle_timeout);
    EXPECT_EQ(stated->keepalive_time, defaults->keepalive_time);
    EXPECT_EQ(stated->keepalive_timeout, defaults->keepalive_timeout);
    EXPECT_EQ(stated->max_tensors, defaults->max_tensors);
    EXPECT_EQ(stated->max_dimensions, defaults->max_dimensions);
    EXPECT_EQ(stated->allow_cuda_ipc, defaults->allow_cuda_ipc);
    EXPECT_EQ(stated->max_regions, defaults->max_regions);
    EXPECT_EQ(stated->max_regions_per_peer, defaults->max_regions_per_peer);
    EXPECT_EQ(stated->max_pending_registrations, defaults->max_pending_registrations);
    EXPECT_EQ(stated->max_ranges, defaults->max_ranges);
    EXPECT_EQ(stated->admission_timeout, defaults->admission_timeout);
    EXPECT_EQ(stated->idle_timeout, defaults->idle_timeout);
    EXPECT_EQ(stated->group_store, defaults->group_store);
    EXPECT_EQ(stated->group_timeout, defaults->group_timeout);
    EXPECT_EQ(stated->group_reconnect_grace, defaults->group_reconnect_grace);
    EXPECT_EQ(stated->group_admission_timeout, defaults->group_admission_timeout);
    EXPECT_EQ(stated->group_result_ttl, defaults->group_result_ttl);
    EXPECT_EQ(stated->group_job_ttl, defaults->group_job_ttl);
    EXPECT_EQ(stated->max_group_bytes, defaults->max_group_bytes);
    EXPECT_EQ(stated->drain_timeout, defaults->drain_timeout);
    EXPECT_EQ(stated->arena_trim_interval, defaults->arena_trim_interval);
    EXPECT_EQ(stated->log_format, defaults->log_format);
    EXPECT_EQ(stated->log_level, defaults->log_level);
  }
}

TEST(Options, SharedMemoryHasTheMemoryBudgetForItsLimitUnlessItIsTold) {
  const absl::StatusOr<Options> defaults = Parse({"--memory-budget=1GiB"});
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->memory_socket, "");
  EXPECT_TRUE(defaults->memory_socket_uids.empty());
  EXPECT_EQ(defaults->compute_threads, 0u);
  EXPECT_EQ(defaults->max_shared_bytes, kGiB);
  EXPECT_EQ(defaults->max_shared_bytes_per_peer, kGiB);

  const absl::StatusOr<Options> told =
      Parse({"--memory-socket=/run/gradclip/memory.sock", "--memory-socket-uids=1000",
             "--memory-socket-uids=0", "--max-shared-bytes=64MiB", "--compute-threads=3"});
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_EQ(told->memory_socket, "/run/gradclip/memory.sock");
  EXPECT_EQ(told->memory_socket_uids, (std::vector<uid_t>{1000, 0}));
  EXPECT_EQ(told->max_shared_bytes, uint64_t{64} << 20);
  EXPECT_EQ(told->max_shared_bytes_per_peer, uint64_t{64} << 20);
  EXPECT_EQ(told->compute_threads, 3u);
}

TEST(Options, CudaMemoryIsTakenWhereThatIsSaidAndThereIsASocket) {
  EXPECT_FALSE(Parse({"--memory-socket=/run/memory.sock"})->allow_cuda_ipc);
  const absl::StatusOr<Options> both =
      Parse({"--memory-socket=/run/memory.sock", "--allow-cuda-ipc"});
  EXPECT_TRUE(both->allow_cuda_ipc);
  EXPECT_THAT(both->warnings, IsEmpty());
  EXPECT_THAT(Parse({"--allow-cuda-ipc"})->warnings,
              ElementsAre("--allow-cuda-ipc has no effect: there is no memory socket "
                          "(--memory-socket=PATH)"));
}

TEST(Options, KeepGroupsInMemoryOrInRedisWithThePasswordFromAVariable) {
  EXPECT_EQ(Parse({})->group_store, "memory");
  const auto options =
      Parse({"--group-store=redis://a:1/2,redis://b"}, {"GRADCLIP_GROUP_STORE_PASSWORD=secret"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->group_store, "redis://a:1/2,redis://b");
  EXPECT_EQ(options->group_store_password, "secret");
  EXPECT_TRUE(options->warnings.empty());
  EXPECT_EQ(Error({"--group-store=http://a"}),
            "--group-store=http://a: expected memory, or redis://HOST:PORT/DB");
}

TEST(Options, RefuseWhatIsNoPathOfASocketAndNoUser) {
  for (const char* argument :
       {"--memory-socket=gradclip.sock", "--memory-socket-uids=root",
        "--memory-socket-uids=4294967295", "--memory-socket-uids=-1", "--max-regions=0",
        "--max-regions=4097", "--max-ranges=0", "--compute-threads=0"}) {
    const absl::StatusOr<Options> options = Parse({argument});
    ASSERT_FALSE(options.ok()) << argument;
    EXPECT_THAT(std::string(options.status().message()), ::testing::HasSubstr("expected "));
  }
}

TEST(Options, VersionPrintsOneLine) {
  const absl::StatusOr<Options> options = Parse({"--version"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->print_and_exit, "gradclip-server " + std::string(ServerVersion()) + "\n");
  EXPECT_THAT(std::string(ServerVersion()), ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST(Options, TakeAnEmptyArgumentList) {
  const char* environment[] = {nullptr};
  EXPECT_TRUE(ParseOptions(0, nullptr, environment, kGiB).ok());
}

}  // namespace
}  // namespace gradclip
