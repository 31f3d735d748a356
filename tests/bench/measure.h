// Two things measured side by side, so that what the machine does besides hits both alike. Pure
// functions.
//
// Not with Google Benchmark: it times one thing after another, and on a machine that others share
// the ratio of two such medians moves by more than what is to be shown. Here each round has both,
// and the ratio is the median of the rounds' ratios.
#ifndef GRADCLIP_TESTS_BENCH_MEASURE_H_
#define GRADCLIP_TESTS_BENCH_MEASURE_H_

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "tests/bench/report.h"

namespace gradclip::bench {

// How much is measured.
struct Settings {
  int rounds = 7;
  bool quick = false;
};

// Runs once and says how many seconds of it count.
using Timed = absl::FunctionRef<absl::StatusOr<double>()>;

// Seconds that `work` takes. An error where it gives one.
absl::StatusOr<double> TimeOf(absl::FunctionRef<absl::Status()> work);

// The value below which `percent` of the values lie. REQUIRES: values is not empty.
double Percentile(std::vector<double> values, double percent);
inline double Median(std::vector<double> values) {
  return Percentile(std::move(values), 50);
}

// Seconds of both, round by round.
struct Comparison {
  std::vector<double> ours;
  std::vector<double> limit;
};

// Runs both once unmeasured, then in turn, `rounds` times each; who comes first alternates.
absl::StatusOr<Comparison> Compare(int rounds, Timed ours, Timed limit);

// The row of a comparison in which both moved `bytes`: rates in GB/s (10^9), and the median of the
// rounds' ratios.
Row RateRow(std::string what, std::string limit_is, uint64_t bytes, const Comparison& comparison);

// The row of a comparison of many short calls at a percentile: microseconds, and their ratio.
Row LatencyRow(std::string what, std::string limit_is, double percent,
               const Comparison& comparison);

// The rows of p50, which has the goal, and p99.
std::vector<Row> LatencyRows(const std::string& what, const std::string& limit_is,
                             const Comparison& comparison, std::optional<Goal> goal);

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_MEASURE_H_
