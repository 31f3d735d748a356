// Prometheus's text format, read back. Strict: what is not understood fails the test that asked.
#ifndef GRADCLIP_TESTS_SERVER_OBSERVE_EXPOSITION_H_
#define GRADCLIP_TESTS_SERVER_OBSERVE_EXPOSITION_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>

namespace gradclip {

struct Exposition {
  using Labels = std::map<std::string, std::string>;

  struct Family {
    std::string type;
    std::set<std::string> label_names;  // le of a histogram's buckets left out
    // By the sample's whole name (with _bucket, _sum, _count), then labels.
    std::map<std::string, std::map<Labels, double>> samples;
  };

  std::map<std::string, Family> families;

  // NaN where there is no such sample.
  double Value(const std::string& name, const Labels& labels = {}) const {
    std::string family = name;
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      const std::string end = suffix;
      if (families.contains(family) || family.size() < end.size()) continue;
      const size_t at = family.size() - end.size();
      if (family.substr(at) == end && families.contains(family.substr(0, at))) {
        family.resize(at);
      }
    }
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    const auto found = families.find(family);
    if (found == families.end()) return kNone;
    const auto samples = found->second.samples.find(name);
    if (samples == found->second.samples.end()) return kNone;
    const auto sample = samples->second.find(labels);
    return sample == samples->second.end() ? kNone : sample->second;
  }

  // Of all the samples of that name.
  double Sum(const std::string& name) const {
    double sum = 0;
    const auto found = families.find(name);
    if (found == families.end()) return std::numeric_limits<double>::quiet_NaN();
    for (const auto& [sample, values] : found->second.samples) {
      for (const auto& [labels, value] : values) sum += value;
    }
    return sum;
  }
};

namespace exposition_internal {

// Reads {name="value",...} from `at` on, which is moved past it. False where that is not well
// formed.
inline bool ReadLabels(const std::string& line, size_t& at, Exposition::Labels& labels) {
  ++at;  // {
  while (at < line.size() && line[at] != '}') {
    const size_t equals = line.find("=\"", at);
    if (equals == std::string::npos) return false;
    const std::string name = line.substr(at, equals - at);
    if (name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") != std::string::npos) return false;
    std::string value;
    at = equals + 2;
    for (; at < line.size() && line[at] != '"'; ++at) {
      if (line[at] != '\\') {
        value += line[at];
        continue;
      }
      ++at;
      if (at == line.size()) return false;
      if (line[at] == 'n') {
        value += '\n';
      } else if (line[at] == '\\' || line[at] == '"') {
        value += line[at];
      } else {
        return false;
      }
    }
    if (at == line.size() || !labels.emplace(name, value).second) return false;
    ++at;  // "
    if (at < line.size() && line[at] == ',') ++at;
  }
  ++at;  // }
  return at < line.size();
}

}  // namespace exposition_internal

inline Exposition ReadExposition(const std::string& text) {
  Exposition all;
  std::string family;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# HELP ", 0) == 0) {
      std::istringstream words(line.substr(7));
      words >> family;
      EXPECT_FALSE(all.families.contains(family)) << "twice: " << line;
      std::string help;
      EXPECT_TRUE(words >> help) << "no help: " << line;
      all.families[family];
      continue;
    }
    if (line.rfind("# TYPE ", 0) == 0) {
      std::istringstream words(line.substr(7));
      std::string name;
      words >> name >> all.families[family].type;
      EXPECT_EQ(name, family);
      continue;
    }
    size_t at = line.find_first_of("{ ");
    if (at == std::string::npos) {
      ADD_FAILURE() << line;
      continue;
    }
    const std::string name = line.substr(0, at);
    Exposition::Labels labels;
    if (line[at] == '{' && !exposition_internal::ReadLabels(line, at, labels)) {
      ADD_FAILURE() << line;
      continue;
    }
    EXPECT_EQ(name.rfind(family, 0), 0) << line;
    Exposition::Family& of = all.families[family];
    for (const auto& [label, value] : labels) {
      if (of.type != "histogram" || label != "le") of.label_names.insert(label);
    }
    char* end = nullptr;
    const double value = std::strtod(line.c_str() + at, &end);
    EXPECT_EQ(*end, '\0') << line;
    EXPECT_TRUE(of.samples[name].emplace(labels, value).second) << "twice: " << line;
  }
  return all;
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_OBSERVE_EXPOSITION_H_
