// The metrics of a real server: what METRICS.md says is there, and what known calls add to it.
#include <gmock/gmock.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/server/group/redis/redis_server.h"
#include "tests/server/net/http_get.h"
#include "tests/server/observe/exposition.h"
#include "tests/server/rpc/generic_call.h"
#include "tests/server/rpc/group_fixture.h"
#include "tests/server/shm/memfds.h"
#include "tests/server/shm/memory_client.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class ServerMetrics : public GroupTest {
 protected:
  ServerMetrics() { options_.metrics_listen = "127.0.0.1:0"; }

  Exposition Scrape() const {
    return ReadExposition(HttpGet(server_->metrics_address(), "/metrics"));
  }

  // Once that many calls have been counted: a moment after their callers have seen their ends.
  Exposition ScrapeAfter(double calls) const {
    while (true) {
      Exposition all = Scrape();
      if (!(all.Sum("gradclip_calls_total") < calls) || HasFailure()) {
        EXPECT_EQ(all.Sum("gradclip_calls_total"), calls);
        return all;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  // Once `metric` has that value.
  Exposition ScrapeUntil(const std::string& metric, double value,
                         const Exposition::Labels& labels = {}) const {
    Exposition all = Scrape();
    while (all.Value(metric, labels) != value && !HasFailure()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      all = Scrape();
    }
    return all;
  }

  double Calls(const Exposition& all, const char* rpc, const char* code,
               bool reached = true) const {
    const auto of = [&](const std::string& backend) {
      return all.Value("gradclip_calls_total",
                       {{"rpc", rpc}, {"code", code}, {"backend", backend}});
    };
    if (!reached) return of("none");
    double calls = 0;
    for (const auto& [labels, value] :
         all.families.at("gradclip_backend_info").samples.begin()->second) {
      calls += of(labels.at("backend"));
    }
    return calls;
  }

  Reply Clip34(double max_norm, v1::ReplyMode reply = v1::REPLY_GRADIENT) {
    v1::ClipGradNormRequest start = ClipStart(max_norm, 2);
    start.mutable_start()->set_reply(reply);
    return Clip({start, Data(Bytes<float>({3, 4}))});
  }
};

// --- What is documented is there, and the other way round ---

struct Documented {
  std::string type;
  std::set<std::string> labels;

  bool operator==(const Documented&) const = default;
};

void PrintTo(const Documented& metric, std::ostream* out) {
  *out << metric.type;
  for (const std::string& label : metric.labels) *out << " " << label;
}

// The code in a table's cell: `a`, `b`.
std::vector<std::string> CodeIn(const std::string& cell) {
  const std::vector<std::string> parts = absl::StrSplit(cell, '`');
  std::vector<std::string> code;
  for (size_t i = 1; i < parts.size(); i += 2) code.push_back(parts[i]);
  return code;
}

// Rows like: | `name` | type | `label`, `label` | meaning |
std::map<std::string, Documented> ReadTables() {
  std::ifstream file(GRADCLIP_TEST_DATA "/../../server/observe/METRICS.md");
  EXPECT_TRUE(file.is_open());
  std::map<std::string, Documented> metrics;
  bool of_metrics = false;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "| ")) {
      if (absl::StartsWith(line, "| name ")) of_metrics = true;
    } else if (!absl::StartsWith(line, "|")) {
      of_metrics = false;
    }
    if (!of_metrics || !absl::StartsWith(line, "| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    EXPECT_EQ(cells.size(), 6) << line;
    if (cells.size() != 6) continue;
    const std::vector<std::string> labels = CodeIn(cells[3]);
    EXPECT_GT(cells[4].size(), 10) << line;
    const bool first = metrics
                           .emplace(CodeIn(cells[1]).at(0),
                                    Documented{std::string(absl::StripAsciiWhitespace(cells[2])),
                                               {labels.begin(), labels.end()}})
                           .second;
    EXPECT_TRUE(first) << "twice: " << line;
  }
  return metrics;
}

TEST_F(ServerMetrics, AreThoseOfTheDocument) {
  options_.metrics_per_job = true;
  Serve();
  std::map<std::string, Documented> exposed;
  for (const auto& [name, family] : Scrape().families) {
    exposed[name] = {family.type, family.label_names};
  }
  EXPECT_GE(exposed.size(), 40);
  std::map<std::string, Documented> documented = ReadTables();
  if (!exposed.contains(
          "gradclip_device_up")) {  // gpu_test.cc looks after these where there are GPUs
    std::erase_if(documented,
                  [](const auto& metric) { return metric.second.labels.contains("device"); });
  }
  EXPECT_EQ(exposed, documented);
}

TEST_F(ServerMetrics, AreNamedByTheRules) {
  options_.metrics_per_job = true;
  Serve();
  for (const auto& [name, family] : Scrape().families) {
    EXPECT_TRUE(absl::StartsWith(name, "gradclip_") || absl::StartsWith(name, "process_")) << name;
    EXPECT_EQ(absl::EndsWith(name, "_total"), family.type == "counter") << name;
    EXPECT_EQ(absl::EndsWith(name, "_info"),
              family.label_names.contains("version") ||
                  (family.type == "gauge" && family.label_names.contains("backend")))
        << name;
    for (const char* taken : {"job", "instance", "le", "quantile"}) {
      EXPECT_FALSE(family.label_names.contains(taken)) << name;
    }
  }
}

TEST_F(ServerMetrics, AreTextOfPrometheusOnlyWhereTheyAreAskedFor) {
  Serve();
  EXPECT_THAT(server_->metrics_address(), StartsWith("127.0.0.1:"));
  EXPECT_THAT(Exchange(server_->metrics_address(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"),
                    HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n")));
  options_.metrics_listen = "";
  Serve();
  EXPECT_EQ(server_->metrics_address(), "");
  EXPECT_TRUE(Clip34(1).status.ok());
}

TEST_F(ServerMetrics, DoNotStartWhereTheAddressIsTaken) {
  Serve();
  Options other = options_;
  other.metrics_listen = server_->metrics_address();
  const absl::Status status = Server::Start(other, log_).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cannot listen on 127.0.0.1:"), HasSubstr("--metrics-listen")));
}

// --- What calls add ---

TEST_F(ServerMetrics, CountCallsByWhatWasAnswered) {
  Serve();
  ASSERT_TRUE(Clip34(1).result.clipped());
  ASSERT_FALSE(Clip34(10, v1::REPLY_GRADIENT_IF_CHANGED).result.gradient_follows());
  ASSERT_TRUE(Clip34(1, v1::REPLY_GRADIENT_IF_CHANGED).result.gradient_follows());
  ASSERT_TRUE(Clip34(1, v1::REPLY_COEFFICIENT).result.clipped());
  const Exposition all = ScrapeAfter(4);
  EXPECT_EQ(Calls(all, "ClipGradNorm", "OK"), 4);
  EXPECT_EQ(all.Value("gradclip_call_duration_seconds_count", {{"rpc", "ClipGradNorm"}}), 4);
  const auto bytes = [&](const char* what, const char* reply) {
    return all.Value(absl::StrCat("gradclip_gradient_", what, "_bytes_total"), {{"reply", reply}});
  };
  EXPECT_EQ(bytes("received", "gradient"), 8);
  EXPECT_EQ(bytes("sent", "gradient"), 8);
  EXPECT_EQ(bytes("saved", "gradient"), 0);
  EXPECT_EQ(bytes("received", "gradient_if_changed"), 16);
  EXPECT_EQ(bytes("sent", "gradient_if_changed"), 8);
  EXPECT_EQ(bytes("saved", "gradient_if_changed"), 8);
  EXPECT_EQ(bytes("received", "coefficient"), 8);
  EXPECT_EQ(bytes("sent", "coefficient"), 0);
  EXPECT_EQ(bytes("saved", "coefficient"), 8);
  EXPECT_EQ(bytes("received", "none"), 0);
  EXPECT_EQ(all.Value("gradclip_clipped_calls_total"), 3);
  EXPECT_EQ(all.Value("gradclip_total_norm_count"), 4);
  EXPECT_EQ(all.Value("gradclip_total_norm_sum"), 20);
  EXPECT_EQ(all.Value("gradclip_total_norm_bucket", {{"le", "2"}}), 0);
  EXPECT_EQ(all.Value("gradclip_total_norm_bucket", {{"le", "5"}}), 4);
  EXPECT_EQ(all.Value("gradclip_coefficient_bucket", {{"le", "0.1"}}), 0);
  EXPECT_EQ(all.Value("gradclip_coefficient_bucket", {{"le", "0.2"}}), 3);
  EXPECT_EQ(all.Value("gradclip_coefficient_bucket", {{"le", "1"}}), 4);
  EXPECT_EQ(all.Sum("gradclip_group_calls_total"), 0);
}

TEST_F(ServerMetrics, CountTheOtherCalls) {
  Serve();
  v1::ComputeNormRequest start;
  v1::TensorSpec& tensor = *start.mutable_start()->add_tensors();
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.add_shape(2);
  v1::ComputeNormRequest data;
  data.set_data(Bytes<float>({3, 4}));
  v1::NormResult norm;
  ASSERT_TRUE(Compute({start, data}, norm).ok());
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(GenericCall(channel_, "/gradclip.v1.GradClip/Nonsense").Finish().error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  const Exposition all = ScrapeAfter(3);
  EXPECT_EQ(Calls(all, "ComputeNorm", "OK"), 1);
  EXPECT_EQ(Calls(all, "GetServerInfo", "OK", false), 1);
  EXPECT_EQ(Calls(all, "unknown", "UNIMPLEMENTED", false), 1);
  EXPECT_EQ(all.Value("gradclip_gradient_received_bytes_total", {{"reply", "none"}}), 8);
  EXPECT_EQ(all.Sum("gradclip_gradient_saved_bytes_total"), 0);
  EXPECT_EQ(all.Value("gradclip_total_norm_sum"), 5);
  EXPECT_EQ(all.Value("gradclip_coefficient_count"), 0);
  EXPECT_EQ(all.Value("gradclip_clipped_calls_total"), 0);
  EXPECT_EQ(all.Value("gradclip_skipped_calls_total"), 0);
}

TEST_F(ServerMetrics, CountErrorsByCode) {
  options_.max_tensors = 1;
  Serve();
  EXPECT_FALSE(Clip({Data("early")}).status.ok());
  EXPECT_FALSE(Clip({ClipStart(1, 2), Data(Bytes<float>({1, 2, 3}))}).status.ok());
  v1::ClipGradNormRequest many = ClipStart(1, 2);
  *many.mutable_start()->add_tensors() = many.start().tensors(0);
  EXPECT_FALSE(Clip({many}).status.ok());
  const Exposition all = ScrapeAfter(3);
  EXPECT_EQ(Calls(all, "ClipGradNorm", "INVALID_ARGUMENT", false), 1);
  EXPECT_EQ(Calls(all, "ClipGradNorm", "INVALID_ARGUMENT"), 1);
  EXPECT_EQ(Calls(all, "ClipGradNorm", "RESOURCE_EXHAUSTED", false), 1);
  EXPECT_EQ(all.Value("gradclip_limit_hits_total", {{"limit", "max-tensors"}}), 1);
  EXPECT_EQ(all.Sum("gradclip_limit_hits_total"), 1);
  EXPECT_EQ(all.Value("gradclip_total_norm_count"), 0);
}

TEST_F(ServerMetrics, CountGradientsThatAreNotFinite) {
  Serve();
  for (const v1::NonfinitePolicy policy :
       {v1::NONFINITE_PROPAGATE, v1::NONFINITE_ERROR, v1::NONFINITE_SKIP, v1::NONFINITE_ZERO}) {
    v1::ClipGradNormRequest start = ClipStart(1, 3);
    start.mutable_start()->set_nonfinite(policy);
    const Reply reply = Clip({start, Data(Bytes<float>({3, kInfinity, NAN}))});
    EXPECT_EQ(reply.status.ok(), policy != v1::NONFINITE_ERROR);
  }
  const Exposition all = ScrapeAfter(4);
  EXPECT_EQ(Calls(all, "ClipGradNorm", "FAILED_PRECONDITION"), 1);
  EXPECT_EQ(all.Value("gradclip_nonfinite_calls_total"), 4);
  EXPECT_EQ(all.Value("gradclip_nonfinite_elements_total"), 8);
  EXPECT_EQ(all.Value("gradclip_skipped_calls_total"), 2);
  EXPECT_EQ(all.Value("gradclip_total_norm_count"), 0);
  EXPECT_EQ(all.Value("gradclip_coefficient_count"), 2);  // 1 of the skip, and 0
}

TEST_F(ServerMetrics, CountSharedMemory) {
  std::string folder = testing::TempDir() + "gradclip-XXXXXX";
  const std::filesystem::path made = mkdtemp(folder.data());
  options_.memory_socket = made / "memory";
  options_.max_shared_bytes = options_.max_shared_bytes_per_peer = options_.memory_budget;
  Serve();
  {
    MappedMemfd memory(64);
    memory.Write(0, Bytes<float>({3, 4}));
    MemoryClient connection(options_.memory_socket);
    const auto answer = connection.Register(memory.memfd(), memory.size());
    ASSERT_TRUE(answer.has_value());
    v1::ClipGradNormRequest request;
    request.mutable_shared()->set_region(
        std::string(reinterpret_cast<const char*>(answer->token.data()), answer->token.size()));
    request.mutable_shared()->add_offset(0);
    request.mutable_shared()->add_length(8);
    ASSERT_TRUE(Clip({ClipStart(1, 2), request}).status.ok());
    const Exposition all = ScrapeAfter(1);
    EXPECT_EQ(all.Value("gradclip_gradient_shared_bytes_total", {{"reply", "gradient"}}), 8);
    EXPECT_EQ(all.Value("gradclip_gradient_saved_bytes_total", {{"reply", "gradient"}}), 8);
    EXPECT_EQ(all.Value("gradclip_gradient_received_bytes_total", {{"reply", "gradient"}}), 0);
    EXPECT_EQ(all.Value("gradclip_regions"), 1);
    EXPECT_EQ(all.Value("gradclip_region_bytes"), 4096);
    EXPECT_EQ(all.Value("gradclip_memory_budget_used_bytes"), 4096);
  }
  ScrapeUntil("gradclip_regions", 0);
  server_.reset();
  std::filesystem::remove_all(made);
}

// --- Groups and jobs ---

TEST_F(ServerMetrics, CountTheCallsOfGroups) {
  options_.metrics_per_job = true;
  Serve();
  const auto start = [](uint32_t rank, uint64_t step, const std::string& job = "run7") {
    return Start(rank, 2, 2, step, job);
  };
  const std::string gradient = Bytes<float>({3, 4});
  for (const Reply& reply : RunAll({start(0, 1), start(1, 1)}, {gradient, gradient})) {
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  }
  ScrapeAfter(2);
  {
    Rank stays = Send(start(0, 2), {3, 4});
    Rank goes = Begin(start(1, 2));
    const Exposition waiting = ScrapeUntil("gradclip_calls_in_groups", 2);
    EXPECT_EQ(waiting.Value("gradclip_calls_active"), 2);
    goes.context->TryCancel();
    EXPECT_EQ(stays.Finish().status.error_code(), grpc::StatusCode::ABORTED);
  }
  const Exposition all = ScrapeAfter(4);
  const auto outcome = [&](const char* name) {
    return all.Value("gradclip_group_calls_total", {{"outcome", name}});
  };
  EXPECT_EQ(outcome("committed"), 2);
  EXPECT_EQ(outcome("aborted"), 1);
  EXPECT_EQ(outcome("left"), 1);
  EXPECT_EQ(all.Sum("gradclip_group_calls_total"), 4);
  EXPECT_EQ(all.Value("gradclip_calls_in_groups"), 0);
  EXPECT_EQ(all.Value("gradclip_group_store_up", {{"endpoint", "memory"}}), 1);
  EXPECT_EQ(all.Value("gradclip_job_calls_total", {{"job_name", "run7"}, {"result", "ok"}}), 2);
  EXPECT_EQ(all.Value("gradclip_job_calls_total", {{"job_name", "run7"}, {"result", "error"}}), 2);
  EXPECT_EQ(all.Value("gradclip_job_clipped_calls_total", {{"job_name", "run7"}}), 2);
}

TEST_F(ServerMetrics, CountGroupsThatFindNoMemory) {
  options_.memory_budget = options_.max_call_bytes = uint64_t{20} << 20;
  options_.group_admission_timeout = absl::Milliseconds(100);
  Serve();
  // Too much together, as the ranks reserve in one piece.
  const std::string gradient(12 << 20, '\1');
  for (const Reply& reply :
       RunAll({Start(0, 2, 3 << 20), Start(1, 2, 3 << 20)}, {gradient, gradient})) {
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  EXPECT_EQ(ScrapeAfter(2).Value("gradclip_group_calls_total", {{"outcome", "no_memory"}}), 2);
  // Too long a wait for what a call without a group holds.
  Rank holder = Connect();
  holder.Write(ClipStart(1, 4 << 20));
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  const std::string small(4 << 20, '\1');
  for (const Reply& reply :
       RunAll({Start(0, 2, 1 << 20, 2), Start(1, 2, 1 << 20, 2)}, {small, small})) {
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  const Exposition all = ScrapeAfter(4);
  EXPECT_EQ(all.Value("gradclip_group_calls_total", {{"outcome", "no_memory"}}), 4);
  EXPECT_EQ(all.Sum("gradclip_group_calls_total"), 4);
}

TEST_F(ServerMetrics, StayWellFormedWhateverCallersSend) {
  options_.metrics_per_job = true;
  Serve();
  const std::string nasty[] = {"\"} 1\ngradclip_draining 1", "\\", std::string("a\0b", 3), "\r\n"};
  for (const std::string& job : nasty) {
    Rank rank = Send(Start(0, 1, 2, 1, job), {3, 4});
    ASSERT_TRUE(rank.Finish().status.ok());
  }
  const Exposition all = ScrapeAfter(4);
  for (const std::string& job : nasty) {
    EXPECT_EQ(all.Value("gradclip_job_calls_total", {{"job_name", job}, {"result", "ok"}}), 1)
        << job;
  }
  EXPECT_EQ(all.Value("gradclip_draining"), 0);
}

TEST_F(ServerMetrics, TellThatRedisIsAway) {
  RedisServer redis;
  const std::string endpoint = redis.address().Describe();
  options_.group_store = absl::StrCat("redis://", endpoint);
  Serve();
  EXPECT_EQ(Scrape().Value("gradclip_group_store_up", {{"endpoint", endpoint}}), 1);
  Rank rank = Send(Start(0, 1, 2), {3, 4});
  ASSERT_TRUE(rank.Finish().status.ok());
  ScrapeAfter(1);
  redis.Kill();
  ScrapeUntil("gradclip_group_store_up", 0, {{"endpoint", endpoint}});
  Rank refused = Send(Start(0, 1, 2, 2), {3, 4});
  EXPECT_EQ(refused.Finish().status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const Exposition all = ScrapeAfter(2);
  EXPECT_EQ(all.Value("gradclip_group_calls_total", {{"outcome", "unreachable"}}), 1);
  EXPECT_EQ(all.Value("gradclip_group_calls_total", {{"outcome", "committed"}}), 1);
  redis.Start();
  ScrapeUntil("gradclip_group_store_up", 1, {{"endpoint", endpoint}});
}

// --- State ---

TEST_F(ServerMetrics, ShowWhatCallsHoldAndWaitFor) {
  options_.memory_budget = options_.max_call_bytes = 1000;
  options_.max_bytes_per_caller = 1000;
  Serve();
  const auto begin = [&](grpc::ClientContext& context) {
    auto stream = stub_->ClipGradNorm(&context);
    stream->Write(ClipStart(1, 200));
    return stream;
  };
  grpc::ClientContext first_context;
  const auto first = begin(first_context);
  ScrapeUntil("gradclip_memory_budget_used_bytes", 800);
  grpc::ClientContext second_context;
  const auto second = begin(second_context);
  const Exposition all = ScrapeUntil("gradclip_calls_waiting", 1);
  EXPECT_EQ(all.Value("gradclip_calls_active"), 2);
  EXPECT_EQ(all.Value("gradclip_memory_budget_bytes"), 1000);
  EXPECT_EQ(all.Value("gradclip_memory_budget_used_bytes"), 800);
  EXPECT_GT(all.Value("gradclip_declarations_used_bytes"), 0);
  EXPECT_EQ(all.Value("gradclip_connections"), 1);
  first_context.TryCancel();
  Drain(*first);
  second->Write(Data(Bytes(std::vector<float>(200, 1.0F))));
  second->WritesDone();
  EXPECT_TRUE(Drain(*second).status.ok());
  const Exposition after = ScrapeAfter(2);
  EXPECT_EQ(Calls(after, "ClipGradNorm", "CANCELLED"), 1);
  EXPECT_EQ(after.Value("gradclip_calls_active"), 0);
  EXPECT_EQ(after.Value("gradclip_calls_waiting"), 0);
}

TEST_F(ServerMetrics, AreThereUntilTheServerHasDrained) {
  Serve();
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, 2));
  ScrapeUntil("gradclip_calls_active", 1);
  EXPECT_EQ(Scrape().Value("gradclip_draining"), 0);
  std::thread drain([&] { server_->Drain(absl::Minutes(5)); });
  ScrapeUntil("gradclip_draining", 1);
  EXPECT_EQ(Clip34(1).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Calls(ScrapeAfter(1), "ClipGradNorm", "UNAVAILABLE", false), 1);
  stream->Write(Data(Bytes<float>({3, 4})));
  stream->WritesDone();
  EXPECT_TRUE(ServerTest::Drain(*stream).status.ok());
  drain.join();
  EXPECT_EQ(Calls(ScrapeAfter(2), "ClipGradNorm", "OK"), 1);
  const std::string address = server_->metrics_address();
  server_.reset();
  EXPECT_FALSE(Dial(address).ok());
}

TEST_F(ServerMetrics, AreScrapedWhileCallsRun) {
  Serve();
  std::vector<std::thread> callers;
  constexpr int kCallers = 3;
  constexpr int kCalls = 30;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&] {
      for (int j = 0; j < kCalls; ++j) EXPECT_TRUE(Clip34(1).status.ok());
    });
  }
  double before = 0;
  for (int i = 0; i < 30; ++i) {
    const double now = Scrape().Sum("gradclip_calls_total");
    EXPECT_GE(now, before);
    before = now;
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(Calls(ScrapeAfter(kCallers * kCalls), "ClipGradNorm", "OK"), kCallers * kCalls);
}

}  // namespace
}  // namespace gradclip
