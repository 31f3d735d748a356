#include "client/command/flags.h"

#include <gtest/gtest.h>

#include <limits>

namespace gradclip {
namespace {

TEST(NumberCheck, RefusesWhatLiesOutsideAndNan) {
  const CLI::Validator at_least = NumberCheck("a number >= 0", 0, 1e300);
  const CLI::Validator over = NumberCheck("a number over 0", 0, 1e300, /*over=*/true);
  EXPECT_EQ(at_least(std::string("0")), "");
  EXPECT_EQ(over(std::string("5e-324")), "");
  EXPECT_EQ(over(std::string("0")), "must be a number over 0, not 0");
  for (const char* text : {"-1", "nan", "inf", "x", "", "1x"}) {
    EXPECT_NE(at_least(std::string(text)), "") << text;
    EXPECT_NE(over(std::string(text)), "") << text;
  }
  EXPECT_EQ(NumberCheck("any", 0, std::numeric_limits<double>::infinity())(std::string("inf")), "");
}

TEST(UsageError, PointsToTheHelpOfTheVerb) {
  EXPECT_EQ(UsageError("clip", "x is wrong").message(), "x is wrong; see gradclip clip --help");
  EXPECT_EQ(UsageError("", "x is wrong").message(), "x is wrong; see gradclip --help");
}

TEST(ServerFlags, LetACallTakeAsLongAsItNeedsUnlessTold) {
  ServerFlags flags;
  EXPECT_EQ(flags.call().timeout, absl::InfiniteDuration());
  flags.timeout = "1.5s";
  EXPECT_EQ(flags.call().timeout, absl::Seconds(1.5));
}

TEST(ServerFlags, AdviseMoreTimeOnlyWhereTheTimeoutWasTheCause) {
  ServerFlags flags;
  EXPECT_EQ(flags.Advise(absl::DeadlineExceededError("a: late")).message(), "a: late");
  flags.timeout = "30s";
  const std::string idle = "a: no message for 60s, the limit of --idle-timeout";
  EXPECT_EQ(flags.Advise(absl::DeadlineExceededError(idle)).message(), idle);
}

TEST(ServerFlags, SayWhatToDoAboutAFailedCall) {
  ServerFlags flags;
  flags.timeout = "30s";
  EXPECT_EQ(flags.Advise(absl::UnavailableError("a: refused")).message(),
            "a: refused; --server names another one");
  EXPECT_EQ(flags.Advise(absl::DeadlineExceededError("a: late")).message(),
            "a: late; --timeout gives it more than 30s");
  EXPECT_EQ(flags.Advise(absl::UnknownError("a: odd")).message(),
            "a: odd; check that it is a gradclip-server that listens there");
  EXPECT_EQ(flags.Advise(absl::DataLossError("a: cut")).message(),
            "a: cut; nothing was written, so it can be run again");
  EXPECT_EQ(flags.Advise(absl::InvalidArgumentError("a: bad")).message(), "a: bad");
}

}  // namespace
}  // namespace gradclip
