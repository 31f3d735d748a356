#include "client/gradclip/backoff.h"

#include <gtest/gtest.h>

#include <limits>

namespace gradclip {
namespace {

constexpr absl::Duration kInitial = absl::Milliseconds(100);
constexpr absl::Duration kMost = absl::Milliseconds(300);

TEST(Backoff, DoublesWithEachTryUpToTheMost) {
  EXPECT_EQ(Backoff(1, kInitial, kMost, 0), absl::Milliseconds(50));
  EXPECT_EQ(Backoff(2, kInitial, kMost, 0), absl::Milliseconds(100));
  for (const int failed : {3, 4, 64, std::numeric_limits<int>::max()}) {
    EXPECT_EQ(Backoff(failed, kInitial, kMost, 0), absl::Milliseconds(150)) << failed;
  }
  EXPECT_EQ(Backoff(1, absl::Hours(1), kMost, 0), absl::Milliseconds(150));
}

TEST(Backoff, IsFromHalfToAllOfThat) {
  EXPECT_EQ(Backoff(1, kInitial, kMost, 0.5), absl::Milliseconds(75));
  const absl::Duration longest = Backoff(1, kInitial, kMost, 1 - 0x1p-53);
  EXPECT_LE(longest, kInitial);
  EXPECT_GT(longest, kInitial - absl::Microseconds(1));
}

TEST(Backoff, TakesNoTimeAndEndlessTimes) {
  EXPECT_EQ(Backoff(9, absl::ZeroDuration(), kMost, 0.5), absl::ZeroDuration());
  EXPECT_EQ(Backoff(5000, kInitial, absl::InfiniteDuration(), 0.5), absl::InfiniteDuration());
}

}  // namespace
}  // namespace gradclip
