#include "server/options/bytes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gradclip {
namespace {

TEST(ParseBytes, ReadsPlainNumbersAndUnits) {
  const struct {
    const char* text;
    uint64_t bytes;
  } cases[] = {
      {"0", 0},
      {"65536", 65536},
      {"512B", 512},
      {"64KiB", 64 << 10},
      {"64 KiB", 64 << 10},
      {"8MiB", 8 << 20},
      {"2GiB", uint64_t{2} << 30},
      {"3TiB", uint64_t{3} << 40},
      {"64k", 64'000},
      {"64kB", 64'000},
      {"2 MB", 2'000'000},
      {"5M", 5'000'000},
      {"7G", 7'000'000'000},
      {"1T", 1'000'000'000'000},
      {"18446744073709551615", UINT64_MAX},
      {"16777215TiB", uint64_t{16777215} << 40},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text;
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBytes, RefusesEverythingElseAndSaysWhatItTakes) {
  for (const char* text : {"", " ", "MiB", "-1", "+1", "1.5GiB", "1e9", "0x10", "8mib", "8mB", "8K",
                           "8 MiB ", " 8MiB", "8MiBs", "8,000", "inf"}) {
    const absl::StatusOr<uint64_t> parsed = ParseBytes(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(parsed.status().message(), std::string(kBytesSyntax)) << text;
  }
}

TEST(ParseBytes, RefusesWhatIsOver64Bits) {
  for (const char* text : {"18446744073709551616", "16777216TiB", "99999999999999999999999999k"}) {
    const absl::StatusOr<uint64_t> parsed = ParseBytes(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().message(), "less than 2^64 bytes") << text;
  }
}

TEST(FormatBytes, IsShortWhereAUnitDividesAndExactAlways) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1 KiB");
  EXPECT_EQ(FormatBytes(8 << 20), "8 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{1536} << 20), "1610612736 B (1.50 GiB)");
  EXPECT_EQ(FormatBytes(1434096), "1434096 B (1.37 MiB)");
  EXPECT_EQ(FormatBytes((uint64_t{8} << 30) + 1), "8589934593 B (8.00 GiB)");
  EXPECT_EQ(FormatBytes(uint64_t{3} << 40), "3 TiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "18446744073709551615 B (16777216.00 TiB)");
}

TEST(FormatBytes, ShortFormsReadBackAsTheSame) {
  for (uint64_t bytes = 1; bytes < uint64_t{1} << 50; bytes *= 2) {
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes);
  }
}

}  // namespace
}  // namespace gradclip
