#include "server/norm/norm_partial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/server/backend/environments.h"
#include "tests/server/backend/plain.h"
#include "tests/server/norm/exact_sum.h"

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNormTypes[] = {1, 2, 3, 0.5, 0.01, 1000, kInfinity};

// Adds the magnitude x as a block of its own.
void AddElement(NormPartial& partial, double x) {
  const double p = partial.norm_type();
  if (p == 1) {
    partial.AddSum(x, 0);
  } else if (p == 2) {
    int exponent;
    const double fraction = std::frexp(x, &exponent);
    partial.AddSum(fraction * fraction, std::isfinite(x) ? 2 * exponent : 0);
  } else if (std::isinf(p)) {
    partial.AddLargest(x);
  } else {
    partial.AddScaled(x, 1);
  }
}

NormPartial Of(double norm_type, const std::vector<double>& magnitudes) {
  NormPartial partial(norm_type);
  for (const double x : magnitudes) AddElement(partial, x);
  return partial;
}

std::string Replaced(std::string bytes, size_t at, const std::string& with) {
  return bytes.replace(at, with.size(), with);
}

TEST(NormPartial, GivesKnownNorms) {
  EXPECT_EQ(Of(2, {3, 4}).Norm(), 5);
  EXPECT_EQ(Of(1, {3, 4}).Norm(), 7);
  EXPECT_EQ(Of(kInfinity, {3, 4, 2}).Norm(), 4);
  EXPECT_DOUBLE_EQ(Of(3, {3, 4, 5}).Norm(), 6);
  EXPECT_DOUBLE_EQ(Of(0.5, {1, 4, 9}).Norm(), 36);
  for (const double p : kNormTypes) {
    EXPECT_EQ(NormPartial(p).Norm(), 0);
    EXPECT_EQ(Of(p, {0, 0}).Norm(), 0);
    EXPECT_EQ(Of(p, {0, 1.75}).Norm(), 1.75);
    EXPECT_EQ(NormPartial(p).norm_type(), p);
  }
}

TEST(NormPartial, IsRightWhereTheSumIsBeyondDoubleButTheNormIsNot) {
  EXPECT_EQ(Of(2, {0x3p660, 0x4p660}).Norm(), 0x5p660);
  EXPECT_EQ(Of(2, {0x3p-700, 0x4p-700}).Norm(), 0x5p-700);
  EXPECT_EQ(Of(2, {5e-324}).Norm(), 5e-324);
  const double largest = std::numeric_limits<double>::max();
  EXPECT_EQ(Of(2, {largest}).Norm(), largest);
  EXPECT_EQ(Of(2, {largest, largest}).Norm(), kInfinity);
  EXPECT_EQ(Of(1, {largest, largest}).Norm(), kInfinity);
  EXPECT_EQ(Of(1, {5e-324, 5e-324}).Norm(), 1e-323);
  EXPECT_DOUBLE_EQ(Of(3, {3e200, 4e200, 5e200}).Norm(), 6e200);
  EXPECT_DOUBLE_EQ(Of(0.5, {1e-300, 4e-300, 9e-300}).Norm(), 36e-300);
}

TEST(NormPartial, RoundsOnceBeforeTheRoot) {
  std::mt19937_64 random(5);
  for (const int p : {1, 2}) {
    for (int round = 0; round < 200; ++round) {
      NormPartial partial(p);
      ExactSum exact;
      for (int i = 0; i < 20; ++i) {
        const auto sum = static_cast<double>(random() >> 11);
        const int exponent = static_cast<int>(random() % 120) - 60;
        partial.AddSum(sum, exponent);
        exact.Add(sum, exponent);
      }
      EXPECT_EQ(partial.Norm(), exact.Norm(p));
    }
  }
}

TEST(NormPartial, MergesInAnyOrderToTheSameBits) {
  std::vector<double> magnitudes = {1e-300, 1e20, 3, 1e-5, 7e9, 0, 1e300, 0.1};
  for (const double p : {1.0, 2.0, kInfinity}) {
    std::sort(magnitudes.begin(), magnitudes.end());
    const std::string expected = Of(p, magnitudes).Serialize();
    do {
      // Two by two, then those.
      NormPartial all(p);
      for (size_t i = 0; i < magnitudes.size(); i += 2) {
        all.Merge(Of(p, {magnitudes[i], magnitudes[i + 1]}));
      }
      ASSERT_EQ(all.Serialize(), expected);
    } while (std::next_permutation(magnitudes.begin(), magnitudes.begin() + 6));
  }
}

TEST(NormPartial, StaysWithinItsBoundForOtherNormsInAnyOrder) {
  std::vector<double> magnitudes;
  for (int i = 0; i < 3000; ++i) magnitudes.push_back(1 + 1e-4 * i);
  for (const double p : {0.02, 0.5, 3.0, 1000.0}) {
    long double sum = 0;
    for (const double x : magnitudes) sum += std::pow(x / magnitudes.back(), (long double){p});
    const long double expected = magnitudes.back() * std::pow(sum, 1.0L / p);
    const double bound = 1e-12 / std::min(1.0, p);
    // Rising: each block is larger than all before.
    EXPECT_NEAR(Of(p, magnitudes).Norm() / expected, 1, bound) << p;
    std::vector<double> falling(magnitudes.rbegin(), magnitudes.rend());
    EXPECT_NEAR(Of(p, falling).Norm() / expected, 1, bound) << p;
    NormPartial merged = Of(p, {falling.begin(), falling.begin() + 1500});
    merged.Merge(Of(p, {falling.begin() + 1500, falling.end()}));
    EXPECT_NEAR(merged.Norm() / expected, 1, bound) << p;
  }
}

TEST(NormPartial, AddsExtremesOfOtherNorms) {
  // (1e-308 / 1e308)^0.01 is 7e-7, though the quotient itself is 0 in double.
  const long double quotient = std::pow(10.0L, -6.16L);
  const double expected = static_cast<double>(1e308L * std::pow(1 + quotient, 100.0L));
  EXPECT_NEAR(Of(0.01, {1e-308, 1e308}).Norm() / expected, 1, 1e-10);
  EXPECT_NEAR(Of(0.01, {1e308, 1e-308}).Norm() / expected, 1, 1e-10);
  for (const double p : {2.5, 1000.0, 1e306}) {
    EXPECT_EQ(Of(p, {7e-309, 1e308}).Norm(), 1e308) << p;
    EXPECT_EQ(Of(p, {1e308, 7e-309}).Norm(), 1e308) << p;
  }
  EXPECT_EQ(Of(1000, {1e-300, 1e300}).Norm(), 1e300);
  EXPECT_EQ(Of(1e300, {2, 3}).Norm(), 3);
  EXPECT_EQ(Of(0x1p-9, {1, 1}).Norm(), 0x1p512);
  EXPECT_EQ(Of(0x1p-11, {0x1p-1060, 0x1p-1060}).Norm(), 0x1p988);  // 2^2048 in between
  EXPECT_EQ(Of(0x1p-11, {1, 1}).Norm(), kInfinity);
}

TEST(NormPartial, LetsNanWinOverInfinityAndInfinityOverNumbers) {
  for (const double p : kNormTypes) {
    for (const bool nan_first : {false, true}) {
      NormPartial partial = Of(p, {1, kInfinity, 2});
      EXPECT_EQ(partial.Norm(), kInfinity) << p;
      const NormPartial nan = Of(p, {3, NAN, 1});
      EXPECT_TRUE(std::isnan(nan.Norm())) << p;
      NormPartial merged = nan_first ? nan : partial;
      merged.Merge(nan_first ? partial : nan);
      merged.Merge(Of(p, {5}));
      EXPECT_TRUE(std::isnan(merged.Norm())) << p;
    }
  }
}

TEST(NormPartial, ClearsToWhatItWasMadeAs) {
  for (const double p : kNormTypes) {
    for (const double x : {2.0, kInfinity, 0.0}) {
      NormPartial partial = Of(p, {x, 1});
      partial.Clear();
      EXPECT_EQ(partial.Serialize(), NormPartial(p).Serialize());
      AddElement(partial, 3);
      EXPECT_EQ(partial.Norm(), 3);
    }
  }
}

TEST(NormPartial, GivesTheSameBytesInAnyFloatingPointEnvironment) {
  const std::vector<double> magnitudes = {0.1, 1e-310, 5e-324, 3, 1e200, 7e-300};
  for (const double p : kNormTypes) {
    const std::string expected = Of(p, magnitudes).Serialize();
    const double norm = Of(p, magnitudes).Norm();
    const double tiny = Of(p, {1e-310, 3e-310}).Norm();
    for (const auto& [name, control] : Environments()) {
      NormPartial partial(p);
      NormPartial small(p);
      double measured, measured_small;
      std::string bytes;
      {
        const Environment environment(control);
        // The squares that AddElement() makes for p = 2 are its own.
        const Environment of_the_squares(p == 2 ? Environments()[0].second : control);
        for (const double x : magnitudes) AddElement(partial, x);
        for (const double x : {1e-310, 3e-310}) AddElement(small, x);
      }
      {
        const Environment environment(control);
        measured = partial.Norm();
        measured_small = small.Norm();
        bytes = partial.Serialize();
        EXPECT_TRUE(NormPartial::Parse(bytes).ok()) << name;
      }
      EXPECT_EQ(bytes, expected) << p << " in " << name;
      if (p == 1 || p == 2 || std::isinf(p)) {
        EXPECT_EQ(measured, norm) << p << " in " << name;
        EXPECT_EQ(measured_small, tiny) << p << " in " << name;
      } else {
        EXPECT_NEAR(measured / norm, 1, 1e-13) << p << " in " << name;
      }
    }
  }
}

TEST(NormPartialSerialForm, ComesBackAsItWas) {
  for (const double p : kNormTypes) {
    for (const std::vector<double>& magnitudes : {std::vector<double>{},
                                                  {0.0},
                                                  {1},
                                                  {1e300, 1e-300, 3},
                                                  {5e-324},
                                                  {kInfinity},
                                                  {NAN, 1},
                                                  {0.1, 0.2, 0.3, 0.7, 1e-17}}) {
      const NormPartial partial = Of(p, magnitudes);
      const std::string bytes = partial.Serialize();
      const absl::StatusOr<NormPartial> parsed = NormPartial::Parse(bytes);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ(parsed->norm_type(), p);
      EXPECT_TRUE(SameBits(parsed->Norm(), partial.Norm()));
      EXPECT_EQ(parsed->Serialize(), bytes);
    }
  }
}

TEST(NormPartialSerialForm, IsTheSameForTheSameValue) {
  NormPartial one_by_one(2);
  for (int i = 0; i < 1024; ++i) one_by_one.AddSum(0.125, 0);
  NormPartial at_once(2);
  at_once.AddSum(1, 7);
  EXPECT_EQ(one_by_one.Serialize(), at_once.Serialize());
  NormPartial bad_then_good(2), good_then_bad(2);
  bad_then_good.AddSum(kInfinity, 0);
  bad_then_good.AddSum(3, 0);
  good_then_bad.AddSum(5, 0);
  good_then_bad.AddSum(kInfinity, 0);
  EXPECT_EQ(bad_then_good.Serialize(), good_then_bad.Serialize());
  EXPECT_EQ(Of(kInfinity, {NAN}).Serialize(), Of(kInfinity, {-NAN, 3}).Serialize());
}

TEST(NormPartialSerialForm, StaysAsItIsWrittenDown) {
  NormPartial partial(2);
  partial.AddSum(25, 0);
  const std::string expected("\x01\x00\0\0\0\0\0\0\0\x40\x46\x01\x19\0\0\0", 16);
  EXPECT_EQ(partial.Serialize(), expected);
}

TEST(NormPartialSerialForm, RefusesEveryCutAndEveryLongerForm) {
  for (const double p : kNormTypes) {
    for (const double x : {0.0, 3.7, kInfinity}) {
      const std::string bytes = Of(p, {x, x}).Serialize();
      for (size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_EQ(NormPartial::Parse(bytes.substr(0, size)).status().code(),
                  absl::StatusCode::kInvalidArgument);
      }
      EXPECT_FALSE(NormPartial::Parse(bytes + '\0').ok());
    }
  }
}

TEST(NormPartialSerialForm, RefusesWhatItCantHaveWritten) {
  const auto double_bytes = [](double x) {
    return std::string(reinterpret_cast<const char*>(&x), sizeof x);
  };
  const std::string sum = Of(2, {3, 1e-20}).Serialize();
  const std::string largest = Of(kInfinity, {3}).Serialize();
  const std::string scaled = Of(3, {3, 2}).Serialize();
  const struct {
    const char* why;
    std::string bytes;
  } refused[] = {
      {"version", Replaced(sum, 0, "\x02")},
      {"state", Replaced(sum, 1, "\x03")},
      {"norm_type 0", Replaced(sum, 2, double_bytes(0))},
      {"norm_type -2", Replaced(sum, 2, double_bytes(-2))},
      {"norm_type NaN", Replaced(sum, 2, double_bytes(NAN))},
      {"digits past the end", Replaced(sum, 10, "\x8b")},
      {"no digits, yet a place", Replaced(NormPartial(2).Serialize(), 10, "\x05")},
      {"a zero digit first", Replaced(sum, 12, std::string(4, '\0'))},
      {"a zero digit last", Replaced(sum, sum.size() - 4, std::string(4, '\0'))},
      {"an infinite number", Replaced(largest, 10, double_bytes(kInfinity))},
      {"a number that is NaN", Replaced(largest, 10, double_bytes(NAN))},
      {"a negative number", Replaced(largest, 10, double_bytes(-3))},
      {"minus zero", Replaced(largest, 10, double_bytes(-0.0))},
      {"an infinite base", Replaced(scaled, 10, double_bytes(kInfinity))},
      {"a base of zero", Replaced(scaled, 10, double_bytes(0))},
      {"a scaled sum below 1", Replaced(scaled, 18, double_bytes(0.5))},
      {"a scaled sum of NaN", Replaced(scaled, 18, double_bytes(NAN))},
      {"a scaled sum beyond all blocks", Replaced(scaled, 18, double_bytes(0x1p161))},
      {"a correction that isn't small", Replaced(scaled, 26, double_bytes(0.25))},
      {"a correction of -0", Replaced(scaled, 26, double_bytes(-0.0))},
      {"a correction of NaN", Replaced(scaled, 26, double_bytes(NAN))},
  };
  for (const auto& [why, bytes] : refused) {
    const absl::Status status = NormPartial::Parse(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), testing::StartsWith("partial norm: ")) << why;
  }
}

TEST(NormPartialSerialForm, EitherRefusesRandomBytesOrWouldHaveWrittenThem) {
  std::mt19937_64 random(11);
  int accepted = 0;
  for (int i = 0; i < 200000; ++i) {
    const double p = kNormTypes[random() % std::size(kNormTypes)];
    std::string bytes = Of(p, {3, 2.5, 1e-30}).Serialize();
    for (uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 4));
    const absl::StatusOr<NormPartial> parsed = NormPartial::Parse(bytes);
    if (!parsed.ok()) continue;
    ++accepted;
    ASSERT_EQ(parsed->Serialize(), bytes);
  }
  EXPECT_GT(accepted, 1000);  // or the test would show nothing
}

}  // namespace
}  // namespace gradclip
