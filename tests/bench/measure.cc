#include "tests/bench/measure.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace gradclip::bench {

absl::StatusOr<double> TimeOf(absl::FunctionRef<absl::Status()> work) {
  const auto begin = std::chrono::steady_clock::now();
  if (absl::Status done = work(); !done.ok()) return done;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double Percentile(std::vector<double> values, double percent) {
  const auto rank = static_cast<size_t>(percent / 100 * static_cast<double>(values.size()));
  const auto nth = values.begin() + static_cast<ptrdiff_t>(std::min(rank, values.size() - 1));
  std::nth_element(values.begin(), nth, values.end());
  return *nth;
}

absl::StatusOr<Comparison> Compare(int rounds, Timed ours, Timed limit) {
  Comparison comparison;
  for (int round = -1; round < rounds; ++round) {  // -1: caches, pages and connections
    for (const bool first : {true, false}) {
      const bool is_ours = first == (round % 2 == 0);
      const absl::StatusOr<double> seconds = is_ours ? ours() : limit();
      if (!seconds.ok()) return seconds.status();
      if (round >= 0) (is_ours ? comparison.ours : comparison.limit).push_back(*seconds);
    }
  }
  return comparison;
}

Row RateRow(std::string what, std::string limit_is, uint64_t bytes, const Comparison& comparison) {
  std::vector<double> ratios;
  for (size_t round = 0; round < comparison.ours.size(); ++round) {
    ratios.push_back(comparison.limit[round] / comparison.ours[round]);
  }
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  return {.what = std::move(what),
          .limit_is = std::move(limit_is),
          .unit = "GB/s",
          .ours = gigabytes / Median(comparison.ours),
          .limit = gigabytes / Median(comparison.limit),
          .ratio = Median(std::move(ratios)),
          .goal = {}};
}

std::vector<Row> LatencyRows(const std::string& what, const std::string& limit_is,
                             const Comparison& comparison, std::optional<Goal> goal) {
  std::vector<Row> rows = {LatencyRow(what, limit_is, 50, comparison),
                           LatencyRow(what, limit_is, 99, comparison)};
  rows[0].goal = goal;
  return rows;
}

Row LatencyRow(std::string what, std::string limit_is, double percent,
               const Comparison& comparison) {
  const double ours = Percentile(comparison.ours, percent);
  const double limit = Percentile(comparison.limit, percent);
  return {.what = absl::StrFormat("%s, p%g", what, percent),
          .limit_is = std::move(limit_is),
          .unit = "us",
          .ours = ours * 1e6,
          .limit = limit * 1e6,
          .ratio = ours / limit,
          .goal = {}};
}

}  // namespace gradclip::bench
