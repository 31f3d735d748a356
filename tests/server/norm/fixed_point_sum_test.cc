// The accumulator against exact integer arithmetic.
#include "server/norm/fixed_point_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/server/norm/exact_sum.h"

namespace gradclip {
namespace {

using State = FixedPointSum::State;

struct Term {
  double value;
  int exponent;
};

// mantissa and exponent as (value, exponent) of one double and a power of two.
testing::AssertionResult RoundsTo(FixedPointSum sum, const ExactSum& exact) {
  sum.Settle();
  const FixedPointSum::Rounded rounded = sum.Round();
  const ExactSum::Rounded expected = exact.Round(53);
  const auto mantissa = static_cast<double>(expected.mantissa);
  if (rounded.mantissa == mantissa && (mantissa == 0 || rounded.exponent == expected.exponent)) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << rounded.mantissa << " * 2^" << rounded.exponent << ", not "
                                     << expected.mantissa << " * 2^" << expected.exponent;
}

bool SameForm(FixedPointSum a, FixedPointSum b) {
  a.Settle();
  b.Settle();
  return a.state() == b.state() && a.first_digit() == b.first_digit() &&
         std::ranges::equal(a.digits(), b.digits());
}

FixedPointSum SumOf(const std::vector<Term>& terms) {
  FixedPointSum sum;
  for (const Term& term : terms) sum.Add(term.value, term.exponent);
  return sum;
}

std::vector<Term> RandomTerms(size_t count, int exponents, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Term> terms;
  for (size_t i = 0; i < count; ++i) {
    const double value = std::ldexp(static_cast<double>(random() >> 11), -53);
    terms.push_back({value, static_cast<int>(random() % (2 * exponents)) - exponents});
  }
  return terms;
}

TEST(FixedPointSum, IsExactOverAllExponents) {
  for (const int exponents : {1, 10, 60, 300, 2100}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      FixedPointSum sum;
      ExactSum exact;
      for (const Term& term : RandomTerms(50, exponents, seed)) {
        sum.Add(term.value, term.exponent);
        exact.Add(term.value, term.exponent);
        ASSERT_TRUE(RoundsTo(sum, exact)) << "exponents within " << exponents;
      }
    }
  }
}

TEST(FixedPointSum, RoundsTiesToEvenAndLooksAtEveryBitBelow) {
  for (const double odd : {1.0, 1 + 0x1p-52}) {
    for (const int distance : {53, 54, 60, 100, 1000, 2000}) {
      FixedPointSum sum;
      ExactSum exact;
      sum.Add(odd, 0);
      exact.Add(odd, 0);
      sum.Add(1, -53);
      exact.Add(1, -53);
      EXPECT_TRUE(RoundsTo(sum, exact)) << odd;
      sum.Add(1, -distance);
      exact.Add(1, -distance);
      EXPECT_TRUE(RoundsTo(sum, exact)) << odd << " and 2^-" << distance;
    }
  }
}

TEST(FixedPointSum, CarriesThroughAllDigits) {
  FixedPointSum sum;
  ExactSum exact;
  for (int bit = -2240; bit < 2239; ++bit) {
    sum.Add(1, bit);
    exact.Add(1, bit);
  }
  EXPECT_TRUE(RoundsTo(sum, exact));
  sum.Add(1, -2240);
  exact.Add(1, -2240);
  EXPECT_TRUE(RoundsTo(sum, exact));
  sum.Settle();
  EXPECT_EQ(sum.digits().size(), 1);  // 2^2239
}

TEST(FixedPointSum, SettlesCarriesBeforeTheyOverflow) {
  // Doubling by merging passes the count of pending additions many times over.
  FixedPointSum sum;
  ExactSum exact;
  const double value = std::nextafter(2.0, 1.0);
  sum.Add(value, 0);
  for (int i = 0; i < 60; ++i) sum.Add(FixedPointSum(sum));
  exact.Add(value, 60);
  EXPECT_TRUE(RoundsTo(sum, exact));
}

TEST(FixedPointSum, SettlesAfterABillionAdditions) {
  // Four million one by one, merged 300 times, all with the largest digits.
  FixedPointSum sum;
  constexpr int kAdditions = (1 << 22) + 5;
  const double value = std::nextafter(0x1p32, 0);
  for (int i = 0; i < kAdditions; ++i) sum.Add(value, 0);
  FixedPointSum many;
  ExactSum exact;
  for (int i = 0; i < 300; ++i) {
    many.Add(sum);
    for (int bit = 0; bit < 23; ++bit) {
      if ((kAdditions >> bit & 1) != 0) exact.Add(value, bit);
    }
  }
  EXPECT_TRUE(RoundsTo(many, exact));
}

TEST(FixedPointSum, IsTheSameInAnyOrderAndGrouping) {
  std::vector<Term> terms = RandomTerms(64, 200, 1);
  const FixedPointSum expected = SumOf(terms);
  std::mt19937_64 random(2);
  for (int i = 0; i < 50; ++i) {
    std::shuffle(terms.begin(), terms.end(), random);
    FixedPointSum sum;
    for (size_t at = 0; at < terms.size();) {
      FixedPointSum group;
      for (size_t size = random() % 9; size > 0 && at < terms.size(); --size, ++at) {
        group.Add(terms[at].value, terms[at].exponent);
        if (random() % 4 == 0) group.Settle();
      }
      sum.Add(group);
    }
    ASSERT_TRUE(SameForm(sum, expected));
  }
}

TEST(FixedPointSum, TakesDigitsThatWereAddedUpElsewhere) {
  const std::vector<Term> terms = RandomTerms(1000, 2000, 5);
  FixedPointSum sum = SumOf({terms.begin(), terms.begin() + 300});
  std::vector<uint64_t> digits(kFixedPointSlots);
  for (size_t i = 300; i < terms.size(); ++i) {
    const FixedPointTerm term =
        SplitIntoDigits(std::bit_cast<uint64_t>(terms[i].value), terms[i].exponent);
    digits[term.first] += term.low;
    digits[term.first + 1] += term.middle;
    digits[term.first + 2] += term.high;
  }
  sum.AddDigits(digits, terms.size() - 300);
  EXPECT_TRUE(SameForm(sum, SumOf(terms)));
}

TEST(FixedPointSum, TakesAFullSumOfDigits) {
  // As many as can be pending, each digit as large as they can make it.
  constexpr uint64_t kAdditions = (uint64_t{1} << 30) - 1;
  const FixedPointTerm term = SplitIntoDigits(std::bit_cast<uint64_t>(0x1.fffffffffffffp0), 0);
  std::vector<uint64_t> digits(kFixedPointSlots);
  digits[term.first] = term.low * kAdditions;
  digits[term.first + 1] = term.middle * kAdditions;
  digits[term.first + 2] = term.high * kAdditions;
  FixedPointSum sum;
  sum.AddDigits(digits, kAdditions);
  ExactSum exact;
  for (int bit = 0; bit < 30; ++bit) exact.Add(0x1.fffffffffffffp0, bit);
  EXPECT_TRUE(RoundsTo(sum, exact));
}

TEST(FixedPointSum, HoldsTheSmallestAndTheLargestSquares) {
  FixedPointSum sum;
  ExactSum exact;
  const double smallest = std::numeric_limits<double>::denorm_min();
  const double largest = std::numeric_limits<double>::max();
  sum.Add(smallest, -1074);
  exact.Add(smallest, -1074);
  EXPECT_TRUE(RoundsTo(sum, exact));
  sum.Add(largest, 1088);
  exact.Add(largest, 1088);
  EXPECT_TRUE(RoundsTo(sum, exact));
  EXPECT_EQ(sum.state(), State::kFinite);
}

TEST(FixedPointSum, DropsBitsBelowItsRange) {
  FixedPointSum sum;
  sum.Add(1, -2241);
  sum.Add(1, -5000);
  sum.Add(std::numeric_limits<double>::denorm_min(), std::numeric_limits<int>::min());
  sum.Settle();
  EXPECT_TRUE(sum.digits().empty());
  sum.Add(1.5, -2240);
  sum.Settle();
  EXPECT_EQ(sum.Round().mantissa, 0x1p52);
  EXPECT_EQ(sum.Round().exponent, -2240 - 52);
}

TEST(FixedPointSum, CountsAsInfiniteBeyondItsRange) {
  FixedPointSum at_once;
  at_once.Add(1, 2240);
  EXPECT_EQ(at_once.state(), State::kInfinite);
  at_once.Clear();
  at_once.Add(1, std::numeric_limits<int>::max());
  EXPECT_EQ(at_once.state(), State::kInfinite);

  FixedPointSum by_carry;
  by_carry.Add(1, 2239);
  by_carry.Settle();
  EXPECT_EQ(by_carry.state(), State::kFinite);
  by_carry.Add(1, 2239);
  by_carry.Settle();
  EXPECT_EQ(by_carry.state(), State::kInfinite);
}

TEST(FixedPointSum, LetsNanWinOverInfinityInAnyOrder) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const std::vector<Term>& terms : {std::vector<Term>{{infinity, 0}, {NAN, 0}, {1, 0}},
                                         {{NAN, 0}, {1, 0}, {infinity, 0}},
                                         {{1, 0}, {infinity, 0}, {-NAN, 0}}}) {
    EXPECT_EQ(SumOf(terms).state(), State::kNan);
  }
  FixedPointSum infinite = SumOf({{infinity, 0}, {3, 0}});
  EXPECT_EQ(infinite.state(), State::kInfinite);
  EXPECT_TRUE(infinite.digits().empty());
  FixedPointSum merged = SumOf({{1, 0}});
  merged.Add(infinite);
  EXPECT_TRUE(SameForm(merged, infinite));
  infinite.Add(SumOf({{NAN, 0}}));
  EXPECT_EQ(infinite.state(), State::kNan);
}

TEST(FixedPointSum, ClearsToWhatItWasMadeAs) {
  for (const double value : {1e300, 5e-324, 0.0, static_cast<double>(NAN)}) {
    FixedPointSum sum = SumOf({{1, 0}, {value, 500}, {value, -900}});
    sum.Clear();
    EXPECT_TRUE(SameForm(sum, FixedPointSum()));
    sum.Add(3, 1);
    EXPECT_TRUE(SameForm(sum, SumOf({{6, 0}})));
  }
}

}  // namespace
}  // namespace gradclip
