#include "server/options/suggest.h"

#include <gtest/gtest.h>

namespace gradclip {
namespace {

const std::vector<std::string> kFlags = {"--server", "--timeout", "--max-norm", "--norm-type"};
const std::vector<std::string> kVerbs = {"norm", "clip", "info", "health", "bench"};

TEST(Closest, FindsOneLetterWrongMissingAddedOrSwapped) {
  EXPECT_EQ(Closest("nrom", kVerbs), "norm");
  EXPECT_EQ(Closest("clipp", kVerbs), "clip");
  EXPECT_EQ(Closest("benhc", kVerbs), "bench");
  EXPECT_EQ(Closest("--max-nrom", kFlags), "--max-norm");
  EXPECT_EQ(Closest("--maxnorm", kFlags), "--max-norm");
  EXPECT_EQ(Closest("--max_norm", kFlags), "--max-norm");
  EXPECT_EQ(Closest("--sever", kFlags), "--server");
}

TEST(Closest, FindsNothingForAnotherWord) {
  EXPECT_EQ(Closest("gradient", kVerbs), std::nullopt);
  EXPECT_EQ(Closest("--verbose", kFlags), std::nullopt);
  EXPECT_EQ(Closest("", kVerbs), std::nullopt);
  EXPECT_EQ(Closest(std::string(100'000, '-'), kFlags), std::nullopt);
}

}  // namespace
}  // namespace gradclip
