#include "client/command/flags.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(ParseNumber, RefusesWhatLiesOutsideAndNan) {
  const NumberRange at_least = {"a number >= 0", 0, 1e300};
  const NumberRange over = {"a number over 0", 0, 1e300, /*open=*/true};
  EXPECT_EQ(ParseNumber("0", at_least).value(), 0);
  EXPECT_EQ(ParseNumber("5e-324", over).value(), 5e-324);
  EXPECT_EQ(ParseNumber("0", over).status().message(), "must be a number over 0, not 0");
  for (const char* text : {"-1", "nan", "inf", "x", "", "1x", "-1e400"}) {
    EXPECT_FALSE(ParseNumber(text, at_least).ok()) << text;
    EXPECT_FALSE(ParseNumber(text, over).ok()) << text;
  }
  const NumberRange any = {"any", 0, kInfinity, /*open=*/false, /*takes_nan=*/true};
  EXPECT_TRUE(std::isnan(ParseNumber("nan", any).value()));
}

TEST(ParseNumber, TakesInfinityOnlyWhereItIsSpelled) {
  const NumberRange any = {"a number", 0, kInfinity};
  for (const char* text : {"inf", "Infinity", "+inf"}) {
    EXPECT_EQ(ParseNumber(text, any).value(), kInfinity) << text;
  }
  EXPECT_EQ(ParseNumber("1.7976931348623157e308", any).value(), 1.7976931348623157e308);
  EXPECT_EQ(ParseNumber("1e400", any).status().message(),
            "must be a number, and 1e400 is over the largest number, 1.7976931348623157e+308");
}

TEST(AddNumber, SetsTheDoubleThatIsClosestToTheText) {
  CLI::App verb;
  double number = 0;
  AddNumber(
      verb, "--number", {"a number", 0, kInfinity}, [&](double set) { number = set; }, "");
  // Just over the middle between 1 and the next double: as a long double it is the middle itself.
  verb.parse("--number 1.000000000000000111023149");
  EXPECT_EQ(number, 1.0000000000000002);
}

TEST(AddCount, TakesWholeNumbersInDecimal) {
  CLI::App verb;
  uint64_t count = 0;
  AddCount(verb, "--count", count, "");
  verb.parse("--count 010");
  EXPECT_EQ(count, 10u);
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

TEST(ServerFlags, TakeTlsFromAnyOfItsFlags) {
  const auto tls = [](std::vector<std::string> arguments) {
    CLI::App verb;
    ServerFlags flags;
    flags.AddTo(verb);
    std::reverse(arguments.begin(), arguments.end());  // as the library takes them
    verb.parse(arguments);
    return flags.client().tls;
  };
  EXPECT_FALSE(tls({}).has_value());
  EXPECT_EQ(tls({"--tls"}).value().ca_file, "");
  EXPECT_EQ(tls({"--tls-ca", "a.pem"}).value().ca_file, "a.pem");
  EXPECT_EQ(tls({"--tls-cert", "c.pem"}).value().cert_file, "c.pem");
  EXPECT_EQ(tls({"--tls-key", "k.pem"}).value().key_file, "k.pem");
  EXPECT_EQ(tls({"--tls-server-name", "a.example"}).value().server_name, "a.example");
  for (const char* name : {"--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name"}) {
    EXPECT_THROW(tls({name, ""}), CLI::ValidationError) << name;
  }
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
  EXPECT_EQ(
      flags.Advise(absl::ResourceExhaustedError("a: has 9; the limit is 8 (--max-message-bytes)"))
          .message(),
      "a: has 9; the limit is 8 (--max-message-bytes); --message-bytes makes them smaller");
  EXPECT_EQ(flags.Advise(absl::ResourceExhaustedError("a: full")).message(), "a: full");
  EXPECT_EQ(flags.Advise(absl::UnknownError("a: odd")).message(),
            "a: odd; check that it is a gradclip-server that listens there");
  EXPECT_EQ(flags.Advise(absl::DataLossError("a: cut")).message(),
            "a: cut; nothing was written, so it can be run again");
  EXPECT_EQ(flags.Advise(absl::InvalidArgumentError("a: bad")).message(), "a: bad");
}

}  // namespace
}  // namespace gradclip
