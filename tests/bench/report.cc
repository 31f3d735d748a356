#include "tests/bench/report.h"

#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace gradclip::bench {
namespace {

// The processor's name as /proc/cpuinfo has it, or "unknown".
std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

std::string Figure(double value, std::string_view unit) {
  return absl::StrFormat("%.*f %s", value < 10 ? 2 : value < 100 ? 1 : 0, value, unit);
}

bool IsMet(const Goal& goal, double ratio) {
  return goal.sense == Goal::Sense::kAtLeast ? ratio >= goal.value : ratio <= goal.value;
}

}  // namespace

void Report::BeginMachine(std::string_view backend, int rounds, bool quick) {
  const std::string processor = ProcessorName();
  const unsigned cores = std::thread::hardware_concurrency();
  const std::string date = absl::FormatTime("%Y-%m-%d %H:%M UTC", absl::Now(), absl::UTCTimeZone());
  json_["machine"] = {{"processor", processor}, {"cores", cores},   {"date", date},
                      {"backend", backend},     {"rounds", rounds}, {"quick", quick}};
  if (table_ == nullptr) return;
  *table_ << absl::StreamFormat("%s, %d cores, %s, backend %s; medians of %d rounds%s\n", processor,
                                cores, date, backend, rounds,
                                quick ? ", sizes too small to judge by" : "");
}

void Report::BeginSection(std::string_view name, std::string_view about) {
  json_["sections"].push_back({{"name", name},
                               {"about", about},
                               {"rows", nlohmann::ordered_json::array()},
                               {"notes", nlohmann::ordered_json::array()}});
  if (table_ == nullptr) return;
  *table_ << absl::StreamFormat("\n%s: %s\n%-67s %12s %12s %7s %8s  %s\n", name, about, "what",
                                "ours", "limit", "ratio", "goal", "met?")
          << std::flush;
}

void Report::Add(const Row& row) {
  nlohmann::ordered_json json = {{"what", row.what},   {"limit_is", row.limit_is},
                                 {"unit", row.unit},   {"ours", row.ours},
                                 {"limit", row.limit}, {"ratio", row.ratio}};
  std::string goal;
  std::string met;
  if (row.goal.has_value()) {
    const bool at_least = row.goal->sense == Goal::Sense::kAtLeast;
    const bool is_met = IsMet(*row.goal, row.ratio);
    json["goal"] = {{at_least ? "at_least" : "at_most", row.goal->value}};
    json["met"] = is_met;
    goal = absl::StrFormat("%s %.2f", at_least ? ">=" : "<=", row.goal->value);
    met = is_met ? "yes" : "NO";
  }
  json_["sections"].back()["rows"].push_back(std::move(json));
  if (table_ == nullptr) return;
  *table_ << absl::StreamFormat("%-67s %12s %12s %7.3f %8s  %s\n",
                                absl::StrFormat("%s / %s", row.what, row.limit_is),
                                Figure(row.ours, row.unit), Figure(row.limit, row.unit), row.ratio,
                                goal, met)
          << std::flush;
}

void Report::Note(std::string_view sentence) {
  json_["sections"].back()["notes"].push_back(sentence);
  if (table_ != nullptr) *table_ << sentence << "\n" << std::flush;
}

absl::Status Report::WriteJson(const std::string& path) const {
  if (path == "-") {
    std::cout << json_.dump(2) << std::endl;
    return absl::OkStatus();
  }
  std::ofstream file(path);
  file << json_.dump(2) << std::endl;
  if (!file) return absl::UnavailableError("cannot write " + path);
  return absl::OkStatus();
}

}  // namespace gradclip::bench
