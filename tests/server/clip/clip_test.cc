#include "server/clip/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gradclip {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = std::numeric_limits<double>::max();

TEST(Decide, ScalesDownToTheLimit) {
  const ClipDecision decision = Decide({.max_norm = 1}, 4);
  EXPECT_EQ(decision.coefficient, 1 / (4 + 1e-6));
  EXPECT_TRUE(decision.clipped);
  EXPECT_FALSE(decision.skipped);
  EXPECT_FALSE(decision.assign_zero);
}

TEST(Decide, LeavesWhatIsBelowTheLimit) {
  const ClipDecision decision = Decide({.max_norm = 1}, 0.5);
  EXPECT_EQ(decision.coefficient, 1);
  EXPECT_FALSE(decision.clipped);
}

TEST(Decide, ClipsExactlyAtTheLimitByEpsilonAlone) {
  const ClipDecision with = Decide({.max_norm = 5}, 5);
  EXPECT_EQ(with.coefficient, 5 / (5 + 1e-6));
  EXPECT_TRUE(with.clipped);
  const ClipDecision without = Decide({.max_norm = 5, .epsilon = 0}, 5);
  EXPECT_EQ(without.coefficient, 1);
  EXPECT_FALSE(without.clipped);
}

TEST(Decide, NeverClipsWithAnInfiniteLimit) {
  for (const double norm : {0.0, 3.0, kLargest, kInfinity, static_cast<double>(NAN)}) {
    const ClipDecision decision = Decide({.max_norm = kInfinity, .pre_scale = 0.25}, norm);
    EXPECT_EQ(decision.coefficient, 0.25) << norm;
    EXPECT_FALSE(decision.clipped) << norm;
  }
}

TEST(Decide, ClipsToZeroWithALimitOfZero) {
  EXPECT_EQ(Decide({.max_norm = 0}, 3).coefficient, 0);
  EXPECT_TRUE(Decide({.max_norm = 0}, 3).clipped);
  // Nothing but epsilon is above the limit.
  EXPECT_EQ(Decide({.max_norm = 0}, 0).coefficient, 0);
}

TEST(Decide, CountsZeroByZeroAsOne) {
  const ClipDecision decision = Decide({.max_norm = 0, .epsilon = 0, .pre_scale = 2}, 0);
  EXPECT_EQ(decision.coefficient, 2);
  EXPECT_FALSE(decision.clipped);
}

TEST(Decide, GivesOneForANormOfZero) {
  EXPECT_EQ(Decide({.max_norm = 1}, 0).coefficient, 1);
  EXPECT_EQ(Decide({.max_norm = 1, .epsilon = 0}, 0).coefficient, 1);
}

TEST(Decide, HoldsWhereNormAndEpsilonOverflowTogether) {
  const ClipRule rule = {.max_norm = kLargest / 4, .epsilon = kLargest};
  const ClipDecision decision = Decide(rule, kLargest);
  EXPECT_DOUBLE_EQ(decision.coefficient, 0.125);
  EXPECT_TRUE(decision.clipped);
}

TEST(Decide, GivesZeroForAnInfiniteNormAndKeepsNan) {
  EXPECT_EQ(Decide({.max_norm = 1}, kInfinity).coefficient, 0);
  EXPECT_TRUE(Decide({.max_norm = 1}, kInfinity).clipped);
  EXPECT_TRUE(std::isnan(Decide({.max_norm = 1}, NAN).coefficient));
  EXPECT_FALSE(Decide({.max_norm = 1}, NAN).clipped);
  EXPECT_TRUE(std::isnan(Decide({.max_norm = 0, .epsilon = 0}, NAN).coefficient));
  EXPECT_TRUE(
      std::isnan(Decide({.max_norm = 1, .nonfinite = OnNonfinite::kError}, NAN).coefficient));
  EXPECT_FALSE(Decide({.max_norm = 1}, NAN).skipped);
}

TEST(Decide, MultipliesByThePreScaleAfterTheLimit) {
  EXPECT_EQ(Decide({.max_norm = 8, .pre_scale = 0.5}, 4).coefficient, 0.5);
  EXPECT_EQ(Decide({.max_norm = 1, .epsilon = 0, .pre_scale = 0.5}, 4).coefficient, 0.125);
}

TEST(Decide, SkipsWithoutThePreScale) {
  for (const double norm : {kInfinity, static_cast<double>(NAN)}) {
    const ClipDecision decision =
        Decide({.max_norm = 1, .pre_scale = 0.5, .nonfinite = OnNonfinite::kSkip}, norm);
    EXPECT_EQ(decision.coefficient, 1);
    EXPECT_TRUE(decision.skipped);
    EXPECT_FALSE(decision.assign_zero);
  }
}

TEST(Decide, AssignsZeroByPolicy) {
  for (const double norm : {kInfinity, static_cast<double>(NAN)}) {
    const ClipDecision decision =
        Decide({.max_norm = 1, .pre_scale = 0.5, .nonfinite = OnNonfinite::kZero}, norm);
    EXPECT_EQ(decision.coefficient, 0);
    EXPECT_TRUE(decision.skipped);
    EXPECT_TRUE(decision.assign_zero);
  }
}

TEST(Decide, AppliesNoPolicyToAFiniteNorm) {
  for (const OnNonfinite policy :
       {OnNonfinite::kPropagate, OnNonfinite::kError, OnNonfinite::kSkip, OnNonfinite::kZero}) {
    const ClipDecision decision = Decide({.max_norm = 1, .epsilon = 0, .nonfinite = policy}, 4);
    EXPECT_EQ(decision.coefficient, 0.25);
    EXPECT_FALSE(decision.skipped);
    EXPECT_FALSE(decision.assign_zero);
  }
}

}  // namespace
}  // namespace gradclip
