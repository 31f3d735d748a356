// What an operator sees: our scrape configuration, alert rules and documented queries in a real
// Prometheus (Debian's package prometheus) that scrapes a real server under load.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gradclip/v1/gradclip.grpc.pb.h"
#include "server/net/listener.h"
#include "tests/client/files/file_bytes.h"
#include "tests/e2e/process.h"
#include "tests/server/net/http_get.h"

namespace gradclip {
namespace {

using nlohmann::json;
using testing::ContainsRegex;
using testing::IsEmpty;
using testing::Not;

const std::string kSource = GRADCLIP_TEST_DATA "/../../";
const std::string kConfiguration = kSource + "docker/prometheus/prometheus.yml";
const std::string kAlerts = kSource + "docker/prometheus/alerts.yml";

// With a GPU, an emulated one, where those can be had: only then are there metrics of devices.
const std::string kServer = GRADCLIP_SERVER;
const bool kHasGpu = kServer != "gradclip-server";

// All of a wait's time is spent only where something is wrong.
constexpr auto kPatience = std::chrono::minutes(2);

// As many as `count` times, so that a change of the file does not go unnoticed.
std::string Replaced(std::string text, const std::string& from, const std::string& to, int count) {
  EXPECT_EQ(absl::StrReplaceAll({{from, to}}, &text), count) << from;
  return text;
}

// Asks promtool, and returns what it says where it is not content.
std::string Complaints(std::vector<std::string> arguments) {
  Process promtool("promtool", std::move(arguments));
  const int status = promtool.Wait();
  return status == 0 ? "" : absl::StrCat("status ", status, "\n", promtool.out(), promtool.err());
}

// --- Without a server ---

TEST(PrometheusFiles, AreRightSaysPromtool) {
  EXPECT_EQ(Complaints({"check", "config", kConfiguration}), "");
  EXPECT_EQ(Complaints({"check", "rules", kAlerts}), "");
}

TEST(PrometheusFiles, AlertWhenTheyShould) {
  EXPECT_EQ(Complaints({"test", "rules", kSource + "tests/e2e/alerts.test.yml"}), "");
}

// --- With one ---

v1::ClipGradNormRequest Start(int tensors, double max_norm, v1::ReplyMode reply) {
  v1::ClipGradNormRequest request;
  for (int i = 0; i < tensors; ++i) {
    v1::TensorSpec& tensor = *request.mutable_start()->add_tensors();
    tensor.set_dtype(v1::DTYPE_FLOAT32);
    tensor.add_shape(2);
  }
  request.mutable_start()->set_max_norm(max_norm);
  request.mutable_start()->set_reply(reply);
  return request;
}

v1::ClipGradNormRequest StartOfJob(const std::string& job, uint64_t step) {
  v1::ClipGradNormRequest request = Start(1, 1, v1::REPLY_COEFFICIENT);
  v1::Group& group = *request.mutable_start()->mutable_group();
  group.set_job(job);
  group.set_step(step);
  group.set_world_size(1);
  return request;
}

class Caller {
 public:
  explicit Caller(const std::string& address)
      : stub_(v1::GradClip::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

  grpc::Status Clip(const v1::ClipGradNormRequest& start, std::vector<float> gradient = {3, 4}) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    stream->Write(start);
    v1::ClipGradNormRequest data;
    data.set_data(gradient.data(), gradient.size() * sizeof(float));
    stream->Write(data);
    stream->WritesDone();
    v1::ClipGradNormResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish();
  }

  grpc::Status Measure() {
    grpc::ClientContext context;
    v1::ComputeNormResponse response;
    const auto stream = stub_->ComputeNorm(&context, &response);
    v1::ComputeNormRequest request;
    v1::TensorSpec& tensor = *request.mutable_start()->add_tensors();
    tensor.set_dtype(v1::DTYPE_FLOAT32);
    tensor.add_shape(2);
    stream->Write(request);
    request.set_data(std::string(8, 'x'));
    stream->Write(request);
    stream->WritesDone();
    return stream->Finish();
  }

  // One of everything.
  void CallAll(uint64_t step) {
    EXPECT_TRUE(Measure().ok());
    EXPECT_TRUE(Clip(Start(1, 1, v1::REPLY_GRADIENT)).ok());
    EXPECT_TRUE(Clip(Start(1, 10, v1::REPLY_GRADIENT_IF_CHANGED)).ok());
    EXPECT_TRUE(Clip(Start(1, 1, v1::REPLY_COEFFICIENT)).ok());
    EXPECT_TRUE(
        Clip(Start(1, 1, v1::REPLY_COEFFICIENT), {std::numeric_limits<float>::infinity(), 1}).ok());
    EXPECT_EQ(Clip(Start(3, 1, v1::REPLY_GRADIENT)).error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_TRUE(Clip(StartOfJob("run7", step)).ok());
  }

 private:
  const std::unique_ptr<v1::GradClip::Stub> stub_;
};

std::string UrlEncoded(const std::string& text) {
  std::string encoded;
  for (const char byte : text) {
    absl::StrAppend(&encoded, "%", absl::Hex(static_cast<unsigned char>(byte), absl::kZeroPad2));
  }
  return encoded;
}

// The code of fenced blocks of `language`.
std::vector<std::string> FencedBlocks(const std::string& text, const std::string& language) {
  const std::string begin = absl::StrCat("```", language, "\n");
  std::vector<std::string> blocks;
  for (size_t at = 0; (at = text.find(begin, at)) != std::string::npos;) {
    at += begin.size();
    const size_t end = text.find("```", at);
    blocks.push_back(text.substr(at, end - at));
    at = end;
  }
  return blocks;
}

// The queries amid prose.
std::vector<std::string> QueriesIn(const std::string& text) {
  static const std::regex kQuery("sum by \\(\\w+\\) \\(rate\\(\\w+\\[\\w+\\]\\)\\)");
  return {std::sregex_token_iterator(text.begin(), text.end(), kQuery), {}};
}

std::set<std::string> MetricsIn(const std::string& expression) {
  static const std::regex kName("\\b(gradclip_[a-z_]+|process_[a-z_]+|up)\\b(?=\\{)");
  std::set<std::string> names;
  for (std::sregex_iterator match(expression.begin(), expression.end(), kName), end; match != end;
       ++match) {
    names.insert((*match)[1]);
  }
  return names;
}

class PrometheusTest : public testing::Test {
 protected:
  // With our files, but for the server's address, and looking each second.
  PrometheusTest() {
    WriteFile(folder_ / "alerts.yml", ReadFile(kAlerts));
    std::string configuration = ReadFile(kConfiguration);
    configuration = Replaced(configuration, "server:9090", metrics_, 1);
    configuration = Replaced(configuration, "_interval: 15s", "_interval: 1s", 2);
    WriteFile(folder_ / "prometheus.yml", configuration);
    for (int i = 0; i < 20 && address_.empty(); ++i) TryStart();
    EXPECT_NE(address_, "") << "prometheus does not start (Debian's package prometheus)";
    load_ = std::thread([this] {
      Caller caller(server_.address());
      for (uint64_t step = 1; !stop_; ++step) caller.CallAll(step);
    });
  }

  ~PrometheusTest() override { StopLoad(); }

  void StopLoad() {
    stop_ = true;
    if (load_.joinable()) load_.join();
  }

  // At a port that was free a moment ago.
  void TryStart() {
    const std::string address = [] {
      const absl::StatusOr<Listener> listener = Listener::Open("127.0.0.1:0", std::nullopt);
      return listener.ok() ? listener->address() : "";
    }();
    prometheus_.emplace(
        "prometheus",
        std::vector<std::string>{absl::StrCat("--config.file=", folder_ / "prometheus.yml"),
                                 absl::StrCat("--storage.tsdb.path=", folder_ / "data"),
                                 "--web.listen-address=" + address, "--log.level=error"});
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < deadline) {
      if (absl::StrContains(HttpGet(address, "/-/ready"), "Ready")) {
        address_ = address;
        return;
      }
      if (waitid(P_PID, static_cast<id_t>(prometheus_->pid()), &ended_,
                 WEXITED | WNOHANG | WNOWAIT) != 0 ||
          ended_.si_pid != 0) {
        return;
      }
      Pause();
    }
  }

  static void Pause() { std::this_thread::sleep_for(std::chrono::milliseconds(100)); }

  json Api(const std::string& target) const {
    const json answer = json::parse(HttpGet(address_, "/api/v1/" + target), nullptr, false);
    EXPECT_TRUE(answer.is_object()) << target;
    if (!answer.is_object()) return {};
    EXPECT_EQ(answer.value("status", ""), "success") << target << "\n" << answer;
    return answer.value("data", json());
  }

  // Of an instant query: all values, once there are some and all are numbers.
  std::vector<double> Ask(const std::string& expression) const {
    std::vector<double> values;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < deadline && !HasFailure()) {
      values.clear();
      const json data = Api("query?query=" + UrlEncoded(expression));
      for (const json& series : data.value("result", json::array())) {
        values.push_back(std::stod(series.at("value").at(1).get<std::string>()));
      }
      const auto is_number = [](double value) { return std::isfinite(value); };
      if (!values.empty() && std::all_of(values.begin(), values.end(), is_number)) return values;
      Pause();
    }
    return {};
  }

  // Our rules as Prometheus has them, by the alert's name, once it has evaluated all.
  std::map<std::string, json> Rules() const {
    std::map<std::string, json> rules;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < deadline && !HasFailure()) {
      rules.clear();
      bool all = true;
      const json data = Api("rules");
      for (const json& group : data.value("groups", json::array())) {
        for (const json& rule : group.at("rules")) {
          all = all && rule.at("health") != "unknown";
          rules.emplace(rule.at("name"), rule);
        }
      }
      if (all && !rules.empty()) break;
      Pause();
    }
    return rules;
  }

  const Folder folder_;
  ServerProcess server_{{"--metrics-listen=127.0.0.1:0", "--metrics-per-job", "--max-tensors=2",
                         "--log-level=warning"},
                        /*environment=*/{},
                        kServer};
  const std::string metrics_ = server_.ReadMetricsAddress();
  std::optional<Process> prometheus_;
  siginfo_t ended_ = {};
  std::string address_;
  std::atomic<bool> stop_ = false;
  std::thread load_;
};

TEST_F(PrometheusTest, UnderstandsAllOfIt) {
  ASSERT_NE(address_, "");
  // Every documented query has an answer.
  const std::vector<std::string> queries =
      FencedBlocks(ReadFile(kSource + "server/observe/METRICS.md"), "promql");
  EXPECT_GE(queries.size(), 10);
  // So have those that the alerts tell an operator to ask. (The README says the same of them.)
  const std::vector<std::string> asked = QueriesIn(ReadFile(kAlerts));
  EXPECT_EQ(asked.size(), 2);
  for (const std::string& query : asked) EXPECT_THAT(Ask(query), Not(IsEmpty())) << query;
  for (const std::string& query : queries) {
    EXPECT_THAT(Ask(query), Not(IsEmpty())) << query;
    EXPECT_THAT(MetricsIn(query), Not(IsEmpty())) << query;
  }

  // Every rule is evaluated, of metrics that are there, and says what to do.
  const std::map<std::string, json> rules = Rules();
  EXPECT_GE(rules.size(), 14);
  for (const auto& [name, rule] : rules) {
    const std::string query = rule.at("query");
    EXPECT_EQ(rule.at("health"), "ok") << name << ": " << rule.value("lastError", "");
    EXPECT_THAT(MetricsIn(query), Not(IsEmpty())) << query;
    for (const std::string& metric : MetricsIn(query)) {
      if (!kHasGpu && absl::StartsWith(metric, "gradclip_device_")) continue;
      EXPECT_THAT(Ask(metric + "{job=\"gradclip\"}"), Not(IsEmpty())) << metric;
    }
    for (const char* annotation : {"summary", "description", "runbook"}) {
      EXPECT_NE(rule.at("annotations").value(annotation, ""), "") << name << " " << annotation;
    }
    EXPECT_NE(rule.at("labels").value("severity", ""), "") << name;
  }

  // One of them sees the server go.
  EXPECT_EQ(rules.at("GradClipServerDown").at("state"), "inactive");
  StopLoad();
  server_.process().Signal(SIGKILL);
  Ask("up{job=\"gradclip\"} == 0");
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::string state;
  do {
    state = Rules().at("GradClipServerDown").at("state");
    Pause();
  } while (state == "inactive" && std::chrono::steady_clock::now() < deadline && !HasFailure());
  EXPECT_NE(state, "inactive");
}

TEST(PrometheusExposition, IsWellFormedSaysPromtoolWhateverCallersSend) {
  const Folder folder;
  ServerProcess server({"--metrics-listen=127.0.0.1:0", "--metrics-per-job", "--max-tensors=2"});
  const std::string metrics = server.ReadMetricsAddress();
  Caller caller(server.address());
  caller.CallAll(1);
  const std::vector<std::string> nasty = {"\"",
                                          "\\",
                                          "\n",
                                          "a\",b=\"c",
                                          "\r\n# HELP x",
                                          "\"} 1\nx 1",
                                          "{}",
                                          "\xc3\xa9",
                                          " ",
                                          std::string("a\0b", 3),
                                          std::string(256, '"'),
                                          "\xe2\x80\xa8"};
  for (const std::string& job : nasty) EXPECT_TRUE(caller.Clip(StartOfJob(job, 1)).ok()) << job;
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(caller.Clip(StartOfJob(absl::StrCat("job", i), 1)).ok());
  }
  const std::string exposition = HttpGet(metrics, "/metrics");
  EXPECT_THAT(
      exposition,
      ContainsRegex("gradclip_job_calls_total\\{job_name=\"other\",result=\"ok\"\\} [1-9]"));
  WriteFile(folder / "metrics", exposition);
  Process promtool("sh", {"-c", "exec promtool check metrics <\"$0\"", folder / "metrics"});
  EXPECT_EQ(promtool.Wait(), 0) << promtool.out() << promtool.err();
  EXPECT_EQ(promtool.out() + promtool.err(), "");
}

}  // namespace
}  // namespace gradclip
