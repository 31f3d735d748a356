// The benchmarks of the GPU on the emulated one: every section has to work, whatever its figures
// are.
#include "tests/bench/gpu/gpu_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "emulated_cuda.h"

namespace gradclip::bench {
namespace {

using testing::HasSubstr;

constexpr Settings kQuick = {.rounds = 2, .quick = true};

class GpuBenchTest : public testing::Test {
 protected:
  ~GpuBenchTest() override { emulated_cuda::Reset(); }

  static void Machine(std::vector<emulated_cuda::Device> devices) {
    emulated_cuda::Options options;
    options.devices = std::move(devices);
    emulated_cuda::Reset(options);
  }

  Report report_{nullptr};
};

TEST_F(GpuBenchTest, EverySectionYieldsFinitePositiveFigures) {
  Machine({{.name = "Emulated H100"}});
  ASSERT_EQ(RunGpu(kQuick, std::nullopt, report_), absl::OkStatus());
  EXPECT_THAT(report_.json()["machine"]["backend"].get<std::string>(),
              HasSubstr("cuda/0: Emulated H100"));
  std::map<std::string, int> rows;
  for (const auto& section : report_.json()["sections"]) {
    for (const auto& row : section["rows"]) {
      ++rows[section["name"].get<std::string>()];
      for (const char* figure : {"ours", "limit", "ratio"}) {
        const double value = row[figure].is_number() ? row[figure].get<double>() : NAN;
        EXPECT_TRUE(std::isfinite(value) && value > 0) << row;
      }
    }
  }
  EXPECT_EQ(rows, (std::map<std::string, int>{{"in place", 4}, {"kernels", 20}, {"streaming", 6}}));
  EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
}

TEST_F(GpuBenchTest, OnlyWhereMemoryBindsHaveNormsAGoal) {
  for (const auto& [minor, goals] : {std::pair(0, 8), {6, 4}}) {
    Machine({{.major = 8, .minor = minor}});
    Report report(nullptr);
    ASSERT_EQ(RunGpu(kQuick, std::nullopt, report), absl::OkStatus());
    int found = 0;
    for (const auto& row : report.json()["sections"][0]["rows"]) found += row.contains("goal");
    EXPECT_EQ(found, goals) << minor;
  }
}

TEST_F(GpuBenchTest, TakesTheFirstThatCanBeUsedOrTheOneThatIsNamed) {
  Machine({{.name = "Old", .major = 6}, {.name = "New"}, {.name = "Third"}});
  ASSERT_EQ(RunGpu(kQuick, std::nullopt, report_), absl::OkStatus());
  EXPECT_THAT(report_.json()["machine"]["backend"].get<std::string>(), HasSubstr("cuda/1: New"));
  ASSERT_EQ(RunGpu(kQuick, 2, report_), absl::OkStatus());
  EXPECT_THAT(report_.json()["machine"]["backend"].get<std::string>(), HasSubstr("cuda/2: Third"));
  EXPECT_THAT(std::string(RunGpu(kQuick, 0, report_).message()),
              HasSubstr("cuda/0 cannot be used: Old"));
  EXPECT_THAT(std::string(RunGpu(kQuick, 3, report_).message()), HasSubstr("no device 3"));
}

TEST_F(GpuBenchTest, SaysWhyThereIsNoGpu) {
  emulated_cuda::Options options;
  options.driver_version = 0;
  emulated_cuda::Reset(options);
  for (const std::optional<int> number : {std::optional<int>(), std::optional(0)}) {
    const absl::Status run = RunGpu(kQuick, number, report_);
    EXPECT_EQ(run.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(run.message()),
                testing::AllOf(HasSubstr("no GPU that can be used"), HasSubstr("NVIDIA driver")));
  }
}

// Of the functions that the sections call themselves.
TEST_F(GpuBenchTest, SaysWhatCudaSays) {
  for (const char* call : {"cudaMalloc", "cudaHostAlloc", "cudaEventCreate", "cudaEventElapsedTime",
                           "cudaMemcpyAsync", "cudaStreamSynchronize"}) {
    Machine({{}});
    emulated_cuda::FailCall(call, 1, cudaErrorMemoryAllocation);
    const absl::Status run = RunGpu(kQuick, std::nullopt, report_);
    EXPECT_EQ(run.code(), absl::StatusCode::kUnavailable) << call;
    EXPECT_THAT(std::string(run.message()),
                testing::AllOf(HasSubstr(call), HasSubstr("cudaErrorMemoryAllocation")));
    EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live()) << call;
  }
}

}  // namespace
}  // namespace gradclip::bench
