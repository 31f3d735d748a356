// Histograms, what is counted of a call, and what is exposed of it, without a server.
#include "server/observe/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/observe/exposition.h"

namespace gradclip {
namespace {

using testing::ElementsAre;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kBounds[] = {0.5, 1, 10};

std::vector<uint64_t> Cumulative(const Histogram& histogram) {
  std::vector<uint64_t> counts;
  for (const auto& bucket : histogram.Collect().histogram.bucket) {
    counts.push_back(bucket.cumulative_count);
  }
  return counts;
}

TEST(Histogram, CountsAnUpperBoundInItsRange) {
  Histogram histogram(kBounds);
  for (const double value : {-1.0, 0.5, std::nextafter(0.5, 1), 1.0, 10.0, 11.0}) {
    histogram.Observe(value);
  }
  EXPECT_THAT(Cumulative(histogram), ElementsAre(2, 4, 5, 6));
  const prometheus::ClientMetric metric = histogram.Collect();
  EXPECT_EQ(metric.histogram.sample_count, 6);
  EXPECT_DOUBLE_EQ(metric.histogram.sample_sum, 22);
  EXPECT_EQ(metric.histogram.bucket.back().upper_bound, kInfinity);
}

TEST(Histogram, KeepsItsSumFinite) {
  Histogram histogram(kBounds);
  histogram.Observe(1e308);
  histogram.Observe(1e308);
  EXPECT_EQ(histogram.Collect().histogram.sample_sum, std::numeric_limits<double>::max());
}

TEST(Histogram, LosesNothingToOtherThreads) {
  Histogram histogram(kBounds);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 10000; ++j) histogram.Observe(1);
    });
  }
  for (int i = 0; i < 100; ++i) histogram.Collect();
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Cumulative(histogram), ElementsAre(0, 40000, 40000, 40000));
  EXPECT_EQ(histogram.Collect().histogram.sample_sum, 40000);
}

class MetricsTest : public testing::Test {
 protected:
  explicit MetricsTest(bool per_job = false)
      : metrics_({.version = "1.2.3",
                  .backends = {"cuda/7", "cpu/x"},
                  .per_job = per_job,
                  .limit_hits = limit_hits_,
                  .state = [this] { return state_; }}) {}

  // An OK call of ClipGradNorm that was clipped.
  static CallRecord Clipped() {
    CallRecord call;
    call.rpc = "ClipGradNorm";
    call.bytes_in = 100;
    call.bytes_out = 100;
    call.norm = 5;
    call.coefficient = 0.25;
    call.clipped = true;
    call.backend = "cpu/x";
    call.reply = "gradient";
    call.milliseconds = 2;
    return call;
  }

  Exposition Expose() const { return ReadExposition(metrics_.Expose()); }

  ServerState state_;
  LimitHits limit_hits_;
  Metrics metrics_;
};

TEST_F(MetricsTest, AreAllThereFromTheStart) {
  const Exposition all = Expose();
  for (const auto& [name, family] : all.families) {
    EXPECT_FALSE(family.samples.empty() && name != "gradclip_group_store_up") << name;
    EXPECT_NE(family.type, "") << name;
  }
  EXPECT_EQ(all.Sum("gradclip_calls_total"), 0);
  EXPECT_EQ(all.Value("gradclip_calls_total",
                      {{"rpc", "ComputeNorm"}, {"code", "ABORTED"}, {"backend", "cpu/x"}}),
            0);
  EXPECT_EQ(all.Value("gradclip_total_norm_count"), 0);
  EXPECT_EQ(all.Value("gradclip_build_info", {{"version", "1.2.3"}}), 1);
  EXPECT_EQ(all.Value("gradclip_backend_info", {{"backend", "cpu/x"}}), 1);
}

TEST_F(MetricsTest, CountCallsByWhatComputed) {
  CallRecord call = Clipped();
  metrics_.Count(call);
  call.backend = "cuda/7";
  metrics_.Count(call);
  metrics_.Count(call);
  call.backend = "";
  metrics_.Count(call);
  const Exposition all = Expose();
  const auto calls = [&](const char* backend) {
    return all.Value("gradclip_calls_total",
                     {{"rpc", "ClipGradNorm"}, {"code", "OK"}, {"backend", backend}});
  };
  EXPECT_EQ(calls("cpu/x"), 1);
  EXPECT_EQ(calls("cuda/7"), 2);
  EXPECT_EQ(calls("none"), 1);
}

TEST_F(MetricsTest, CountCallsThatFellBack) {
  CallRecord call = Clipped();
  metrics_.Count(call);
  EXPECT_EQ(Expose().Value("gradclip_device_fallbacks_total"), 0);
  call.fell_back = true;
  metrics_.Count(call);
  call.status = absl::CancelledError("gone");
  metrics_.Count(call);
  EXPECT_EQ(Expose().Value("gradclip_device_fallbacks_total"), 2);
}

TEST_F(MetricsTest, TellHowDevicesStand) {
  state_.devices = {{.name = "cuda/0",
                     .up = true,
                     .memory_budget_bytes = 100,
                     .memory_used_bytes = 60,
                     .calls = 2},
                    {.name = "cuda/1"}};
  const Exposition all = Expose();
  EXPECT_EQ(all.Value("gradclip_device_up", {{"device", "cuda/0"}}), 1);
  EXPECT_EQ(all.Value("gradclip_device_up", {{"device", "cuda/1"}}), 0);
  EXPECT_EQ(all.Value("gradclip_device_memory_budget_bytes", {{"device", "cuda/0"}}), 100);
  EXPECT_EQ(all.Value("gradclip_device_memory_used_bytes", {{"device", "cuda/0"}}), 60);
  EXPECT_EQ(all.Value("gradclip_device_calls", {{"device", "cuda/0"}}), 2);
}

TEST_F(MetricsTest, CountACall) {
  metrics_.Count(Clipped());
  const Exposition all = Expose();
  EXPECT_EQ(all.Sum("gradclip_calls_total"), 1);
  EXPECT_EQ(all.Value("gradclip_calls_total",
                      {{"rpc", "ClipGradNorm"}, {"code", "OK"}, {"backend", "cpu/x"}}),
            1);
  EXPECT_DOUBLE_EQ(all.Value("gradclip_call_duration_seconds_sum", {{"rpc", "ClipGradNorm"}}),
                   0.002);
  EXPECT_EQ(all.Value("gradclip_gradient_received_bytes_total", {{"reply", "gradient"}}), 100);
  EXPECT_EQ(all.Value("gradclip_gradient_sent_bytes_total", {{"reply", "gradient"}}), 100);
  EXPECT_EQ(all.Sum("gradclip_gradient_saved_bytes_total"), 0);
  EXPECT_EQ(all.Value("gradclip_total_norm_sum"), 5);
  EXPECT_EQ(all.Value("gradclip_total_norm_bucket", {{"le", "2"}}), 0);
  EXPECT_EQ(all.Value("gradclip_total_norm_bucket", {{"le", "5"}}), 1);
  EXPECT_EQ(all.Value("gradclip_coefficient_sum"), 0.25);
  EXPECT_EQ(all.Value("gradclip_clipped_calls_total"), 1);
  EXPECT_EQ(all.Value("gradclip_nonfinite_calls_total"), 0);
}

TEST_F(MetricsTest, SaveWhatDoesNotGoBack) {
  CallRecord call = Clipped();
  call.reply = "coefficient";
  call.bytes_out = 0;
  call.shared_bytes = 1000;
  metrics_.Count(call);
  call.status = absl::CancelledError("gone");
  metrics_.Count(call);  // saved nothing
  call.status = absl::OkStatus();
  call.reply = "";
  call.rpc = "ComputeNorm";
  metrics_.Count(call);  // nothing would have gone back
  const Exposition all = Expose();
  EXPECT_EQ(all.Value("gradclip_gradient_saved_bytes_total", {{"reply", "coefficient"}}), 1100);
  EXPECT_EQ(all.Sum("gradclip_gradient_saved_bytes_total"), 1100);
  EXPECT_EQ(all.Value("gradclip_gradient_shared_bytes_total", {{"reply", "coefficient"}}), 2000);
  EXPECT_EQ(all.Value("gradclip_gradient_shared_bytes_total", {{"reply", "none"}}), 1000);
}

TEST_F(MetricsTest, KeepNumbersThatAreNotFiniteOutOfTheHistograms) {
  CallRecord call = Clipped();
  for (const double norm : {kInfinity, std::nan("")}) {
    call.norm = norm;
    call.coefficient = std::nan("");
    call.clipped = false;
    call.skipped = true;
    call.nonfinite_norm = true;
    call.nonfinite_elements = 3;
    metrics_.Count(call);
  }
  call.status = absl::FailedPreconditionError("NONFINITE_ERROR");
  metrics_.Count(call);
  const Exposition all = Expose();
  EXPECT_EQ(all.Value("gradclip_total_norm_count"), 0);
  EXPECT_EQ(all.Value("gradclip_coefficient_count"), 0);
  EXPECT_EQ(all.Value("gradclip_skipped_calls_total"), 2);
  EXPECT_EQ(all.Value("gradclip_nonfinite_calls_total"), 3);
  EXPECT_EQ(all.Value("gradclip_nonfinite_elements_total"), 9);
}

TEST_F(MetricsTest, CountWhatBecameOfAStep) {
  CallRecord call = Clipped();
  call.group = GroupRecord{.job = "a"};
  metrics_.Count(call);  // it left
  for (int code = 0; code <= 16; ++code) {
    call.group_outcome = static_cast<absl::StatusCode>(code);
    metrics_.Count(call);
  }
  const Exposition all = Expose();
  const auto outcome = [&](const char* name) {
    return all.Value("gradclip_group_calls_total", {{"outcome", name}});
  };
  for (const char* name : {"committed", "aborted", "timed_out", "refused", "no_memory",
                           "wrong_secret", "superseded", "unreachable", "left"}) {
    EXPECT_EQ(outcome(name), 1) << name;
  }
  EXPECT_EQ(outcome("other"), 9);
}

TEST_F(MetricsTest, TakeWhatTheyDoNotKnowAsSuch) {
  CallRecord call;
  call.rpc = "Nonsense";
  call.status = absl::Status(static_cast<absl::StatusCode>(99), "odd");
  metrics_.Count(call);
  EXPECT_EQ(Expose().Value("gradclip_calls_total",
                           {{"rpc", "unknown"}, {"code", "UNKNOWN"}, {"backend", "none"}}),
            1);
}

TEST_F(MetricsTest, ShowTheStateOfTheMoment) {
  state_ = {.budget_bytes = 1,
            .budget_used_bytes = 2,
            .declarations_bytes = 3,
            .declarations_used_bytes = 4,
            .arena_used_bytes = 5,
            .arena_free_bytes = 6,
            .calls = 7,
            .waiting_calls = 8,
            .group_calls = 9,
            .group_stores = {{"a:1/0", true}, {"b:1/0", false}},
            .devices = {},
            .regions = 10,
            .region_bytes = 11,
            .connections = 12,
            .lost_log_lines = 13,
            .draining = true};
  limit_hits_.Count("max-calls");
  const Exposition all = Expose();
  EXPECT_EQ(all.Value("gradclip_memory_budget_bytes"), 1);
  EXPECT_EQ(all.Value("gradclip_memory_budget_used_bytes"), 2);
  EXPECT_EQ(all.Value("gradclip_declarations_budget_bytes"), 3);
  EXPECT_EQ(all.Value("gradclip_declarations_used_bytes"), 4);
  EXPECT_EQ(all.Value("gradclip_arena_bytes", {{"state", "used"}}), 5);
  EXPECT_EQ(all.Value("gradclip_arena_bytes", {{"state", "free"}}), 6);
  EXPECT_EQ(all.Value("gradclip_calls_active"), 7);
  EXPECT_EQ(all.Value("gradclip_calls_waiting"), 8);
  EXPECT_EQ(all.Value("gradclip_calls_in_groups"), 9);
  EXPECT_EQ(all.Value("gradclip_group_store_up", {{"endpoint", "a:1/0"}}), 1);
  EXPECT_EQ(all.Value("gradclip_group_store_up", {{"endpoint", "b:1/0"}}), 0);
  EXPECT_EQ(all.Value("gradclip_regions"), 10);
  EXPECT_EQ(all.Value("gradclip_region_bytes"), 11);
  EXPECT_EQ(all.Value("gradclip_connections"), 12);
  EXPECT_EQ(all.Value("gradclip_log_lines_lost_total"), 13);
  EXPECT_EQ(all.Value("gradclip_draining"), 1);
  EXPECT_EQ(all.Value("gradclip_limit_hits_total", {{"limit", "max-calls"}}), 1);
  EXPECT_EQ(all.Value("gradclip_limit_hits_total", {{"limit", "max-tensors"}}), 0);
}

TEST_F(MetricsTest, ShowTheProcess) {
  const Exposition all = Expose();
  EXPECT_GT(all.Value("process_resident_memory_bytes"), 1e5);
  EXPECT_GE(all.Value("process_virtual_memory_bytes"), all.Value("process_resident_memory_bytes"));
  EXPECT_GE(all.Value("process_cpu_seconds_total"), 0);
  EXPECT_GE(all.Value("process_open_fds"), 3);
  EXPECT_GT(all.Value("process_max_fds"), all.Value("process_open_fds"));
  const auto now = static_cast<double>(time(nullptr));
  EXPECT_LE(all.Value("process_start_time_seconds"), now + 1);
  EXPECT_GT(all.Value("process_start_time_seconds"), now - 24 * 3600);
}

TEST_F(MetricsTest, HaveNoJobsUnlessAskedTo) {
  CallRecord call = Clipped();
  call.group = GroupRecord{.job = "a"};
  metrics_.Count(call);
  EXPECT_FALSE(Expose().families.contains("gradclip_job_calls_total"));
}

class JobMetricsTest : public MetricsTest {
 protected:
  JobMetricsTest() : MetricsTest(/*per_job=*/true) {}

  void Count(const std::string& job) {
    CallRecord call = Clipped();
    call.group = GroupRecord{.job = job};
    metrics_.Count(call);
  }

  static double Calls(const Exposition& all, const std::string& job) {
    return all.Value("gradclip_job_calls_total", {{"job_name", job}, {"result", "ok"}});
  }
};

TEST_F(JobMetricsTest, CountTheCallsOfAJob) {
  Count("a");
  CallRecord call = Clipped();
  call.group = GroupRecord{.job = "a"};
  call.status = absl::AbortedError("a rank left");
  call.nonfinite_norm = true;
  call.shared_bytes = 7;
  metrics_.Count(call);
  metrics_.Count(Clipped());  // of no job
  const Exposition all = Expose();
  EXPECT_EQ(all.Sum("gradclip_job_calls_total"), 2);
  EXPECT_EQ(Calls(all, "a"), 1);
  EXPECT_EQ(all.Value("gradclip_job_calls_total", {{"job_name", "a"}, {"result", "error"}}), 1);
  EXPECT_EQ(all.Value("gradclip_job_gradient_bytes_total", {{"job_name", "a"}}), 207);
  EXPECT_EQ(all.Value("gradclip_job_clipped_calls_total", {{"job_name", "a"}}), 1);
  EXPECT_EQ(all.Value("gradclip_job_nonfinite_calls_total", {{"job_name", "a"}}), 1);
}

TEST_F(JobMetricsTest, HaveSeriesForAHundredJobsAndTheOthersTogether) {
  static_assert(JobMetrics::kMaxJobs == 100);  // as METRICS.md and --help say
  for (int i = 0; i < 150; ++i) Count(absl::StrCat("job", i));
  Count("job0");
  Count("job149");
  const Exposition all = Expose();
  EXPECT_EQ(all.families.at("gradclip_job_calls_total").samples.begin()->second.size(), 2 * 101);
  EXPECT_EQ(Calls(all, "job0"), 2);
  EXPECT_EQ(Calls(all, "job99"), 1);
  EXPECT_TRUE(std::isnan(Calls(all, "job100")));
  EXPECT_EQ(Calls(all, "other"), 51);
}

TEST_F(JobMetricsTest, TakeAJobOfTheirOwnNameAsOneOfTheOthers) {
  Count("other");
  EXPECT_EQ(Calls(Expose(), "other"), 1);
}

TEST_F(JobMetricsTest, AreWellFormedWhateverAJobIsCalled) {
  const std::string nasty[] = {"\"",
                               "\\",
                               "\n",
                               "a\",b=\"c",
                               "\r\n# x",
                               "} 1",
                               "\\n",
                               std::string("a\0b", 3),
                               "\xc3\xa9",
                               " ",
                               "\\\"",
                               "{}",
                               std::string(256, '"'),
                               "\xe2\x80\xa8"};
  for (const std::string& name : nasty) Count(name);
  const Exposition all = Expose();
  for (const std::string& name : nasty) EXPECT_EQ(Calls(all, name), 1) << name;
}

TEST_F(JobMetricsTest, CountWhileTheyAreScraped) {
  std::atomic<bool> stop = false;
  std::thread scraper([&] {
    while (!stop) metrics_.Expose();
  });
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&, i] {
      for (int j = 0; j < 300; ++j) Count(absl::StrCat("job", i * 50 + j % 50));
    });
  }
  for (std::thread& caller : callers) caller.join();
  stop = true;
  scraper.join();
  EXPECT_EQ(Expose().Sum("gradclip_job_calls_total"), 900);
  EXPECT_EQ(Expose().Sum("gradclip_calls_total"), 900);
}

}  // namespace
}  // namespace gradclip
