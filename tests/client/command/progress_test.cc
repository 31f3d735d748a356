#include "client/command/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <sstream>

namespace gradclip {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() {
    progress_.emplace(
        &terminal_, [this] { return now_; }, [this] { return width_; });
  }

  // What is written to the terminal when `done` of `total` are through at `seconds`.
  std::string At(double seconds, uint64_t done, uint64_t total) {
    now_ = absl::UnixEpoch() + absl::Seconds(seconds);
    progress_->Update(done, total);
    return Written();
  }
  std::string Finish() {
    progress_->Finish();
    return Written();
  }
  std::string Written() {
    std::string written = terminal_.str();
    terminal_.str("");
    return written;
  }

  absl::Time now_ = absl::UnixEpoch();
  size_t width_ = 0;
  std::ostringstream terminal_;
  std::optional<Progress> progress_;
};

TEST_F(ProgressTest, ShowsNothingInTheFirstSecond) {
  EXPECT_EQ(At(0, 1, 10), "");
  EXPECT_EQ(At(0.999, 9, 10), "");
  EXPECT_EQ(Finish(), "");
}

TEST_F(ProgressTest, ShowsTheRateAndTheRemainingTimeAndErasesThemAtTheEnd) {
  EXPECT_EQ(At(2, kGiB, 4 * kGiB),
            "\r\x1b[K 25% [#####               ] 1 GiB of 4 GiB, 537 MB/s, 6s left");
  EXPECT_EQ(At(8, 4 * kGiB, 4 * kGiB),
            "\r\x1b[K100% [####################] 4 GiB of 4 GiB, 537 MB/s, 0 left");
  EXPECT_EQ(Finish(), "\r\x1b[K");
  EXPECT_EQ(Finish(), "");
}

TEST_F(ProgressTest, IsDrawnTenTimesASecondAtMost) {
  EXPECT_NE(At(1, 1, 10), "");
  EXPECT_EQ(At(1.09, 2, 10), "");
  EXPECT_NE(At(1.1, 2, 10), "");
}

TEST_F(ProgressTest, LeavesTheLastColumnOfANarrowTerminalFree) {
  width_ = 20;
  EXPECT_EQ(At(2, kGiB, 4 * kGiB), "\r\x1b[K 25% [#####        ");
  width_ = 1;
  EXPECT_EQ(At(3, kGiB, 4 * kGiB), "\r\x1b[K");
  width_ = 200;
  EXPECT_THAT(At(4, kGiB, 4 * kGiB), ::testing::EndsWith(" left"));
}

TEST_F(ProgressTest, KnowsNoRemainingTimeBeforeTheFirstByte) {
  EXPECT_THAT(At(1, 0, 10), ::testing::EndsWith("0 B of 10 B, 0 B/s, ? left"));
  EXPECT_EQ(At(2, 0, 0), "");
}

TEST(Progress, IsSilentWithoutATerminal) {
  absl::Time now = absl::UnixEpoch();
  Progress progress(nullptr, [&] { return now; });
  now += absl::Seconds(5);
  progress.Update(1, 2);
  progress.Finish();
}

}  // namespace
}  // namespace gradclip
