// Runs gradclip-bench --quick: every section has to work, whatever its figures are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace gradclip::bench {
namespace {

TEST(Bench, EverySectionYieldsFinitePositiveFigures) {
  FILE* pipe = popen(GRADCLIP_BIN_DIR "/gradclip-bench --quick --json -", "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  char buffer[4096];
  for (size_t size; (size = fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    output.append(buffer, size);
  ASSERT_EQ(pclose(pipe), 0);
  const nlohmann::json report = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(report.is_object()) << output;

  EXPECT_FALSE(report["machine"]["backend"].get<std::string>().empty());
  std::set<std::string> names;
  for (const nlohmann::json& section : report["sections"]) {
    const std::string name = section["name"];
    names.insert(name);
    // PyTorch may be absent, which is then said.
    EXPECT_FALSE(section["rows"].empty() && (name != "pytorch" || section["notes"].empty()))
        << name;
    for (const nlohmann::json& row : section["rows"]) {
      for (const char* figure : {"ours", "limit", "ratio"}) {
        const double value = row[figure].is_number() ? row[figure].get<double>() : NAN;
        EXPECT_TRUE(std::isfinite(value) && value > 0) << row;
      }
    }
  }
  EXPECT_EQ(names, (std::set<std::string>{"groups", "kernels", "latency", "memory", "parallel",
                                          "pytorch", "ranks", "rpcs", "shared"}));
}

}  // namespace
}  // namespace gradclip::bench
