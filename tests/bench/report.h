// What the benchmarks found, as a table for people and as JSON. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_REPORT_H_
#define GRADCLIP_TESTS_BENCH_REPORT_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace gradclip::bench {

// What a ratio has to be.
struct Goal {
  enum class Sense { kAtLeast, kAtMost };
  Sense sense;
  double value;
};

inline Goal AtLeast(double value) {
  return {Goal::Sense::kAtLeast, value};
}
inline Goal AtMost(double value) {
  return {Goal::Sense::kAtMost, value};
}

// One figure of ours beside the limit that was measured with it.
struct Row {
  std::string what;
  std::string limit_is;  // "raw sink"
  std::string unit;      // of ours and limit: "GB/s", "us", "MiB"
  double ours = 0;
  double limit = 0;
  double ratio = 0;  // the median of the rounds' ratios, hence not always ours / limit
  std::optional<Goal> goal;
};

class Report {
 public:
  // table: where rows are printed as they come; may be null.
  explicit Report(std::ostream* table) : table_(table) {}

  // What the figures were measured on: processor, cores, date, backend.
  void BeginMachine(std::string_view backend, int rounds, bool quick);
  // The rows and notes that follow belong to it.
  void BeginSection(std::string_view name, std::string_view about);
  void Add(const Row& row);
  // A sentence in place of rows.
  void Note(std::string_view sentence);

  // {"machine": {...}, "sections": [{"name", "about", "rows": [...], "notes": [...]}]}
  const nlohmann::ordered_json& json() const { return json_; }
  // To a file; "-" is standard output.
  absl::Status WriteJson(const std::string& path) const;

 private:
  std::ostream* const table_;
  nlohmann::ordered_json json_ = {{"sections", nlohmann::ordered_json::array()}};
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_REPORT_H_
