#include "server/rpc/connection_guard.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace gradclip {
namespace {

using std::chrono::steady_clock;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kPeer[] = "ipv4:10.0.0.1:5123";

class ConnectionGuardTest : public testing::Test {
 protected:
  ~ConnectionGuardTest() override { close(null_); }

  const int null_ = open("/dev/null", O_WRONLY | O_CLOEXEC);
  Log log_{LogFormat::kText, LogLevel::kInfo, null_};
  LimitHits hits_;
  std::vector<std::string> cut_;
  ConnectionGuard guard_{{.streams = 2, .resets_per_second = 3},
                         [this](const std::string& peer) { cut_.push_back(peer); },
                         log_,
                         hits_};
};

TEST_F(ConnectionGuardTest, RefusesCallsOverTheLimitOfAConnection) {
  EXPECT_TRUE(guard_.Begin(kPeer).ok());
  EXPECT_TRUE(guard_.Begin(kPeer).ok());
  const absl::Status refused = guard_.Begin(kPeer);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 calls in progress"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("(--max-streams-per-connection)"));
  EXPECT_TRUE(guard_.Begin("ipv4:10.0.0.1:5124").ok());
  guard_.End(kPeer, false);
  guard_.End(kPeer, false);
  EXPECT_TRUE(guard_.Begin(kPeer).ok());
  EXPECT_THAT(cut_, IsEmpty());
}

// gRPC would have ended a connection that acknowledges its limit.
TEST_F(ConnectionGuardTest, CutsOnceWhatKeepsToNoLimit) {
  for (int i = 0; i < 4 + 3; ++i) static_cast<void>(guard_.Begin(kPeer));
  EXPECT_THAT(cut_, IsEmpty());
  for (int i = 0; i < 5; ++i) static_cast<void>(guard_.Begin(kPeer));
  EXPECT_THAT(cut_, ElementsAre(kPeer));
  EXPECT_EQ(hits_.of("max-streams-per-connection"), 1U);
}

TEST_F(ConnectionGuardTest, CutsWhatResetsCallsAsFastAsItMakesThem) {
  // Within one second, or within the next where it ends amid the first loop.
  for (int i = 0; i < 100 && cut_.empty(); ++i) {
    EXPECT_TRUE(guard_.Begin(kPeer).ok());
    guard_.End(kPeer, true);
    if (i < 3) {
      EXPECT_THAT(cut_, IsEmpty());
    }
  }
  EXPECT_THAT(cut_, ElementsAre(kPeer));
  EXPECT_EQ(hits_.of("max-resets"), 1U);
}

TEST_F(ConnectionGuardTest, ForgetsResetsAfterASecond) {
  for (int second = 0; second < 3; ++second) {
    EXPECT_TRUE(guard_.Begin(kPeer).ok());
    guard_.End(kPeer, true);
    std::this_thread::sleep_for(std::chrono::milliseconds(1050));
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(guard_.Begin(kPeer).ok());
    guard_.End(kPeer, true);
  }
  EXPECT_THAT(cut_, IsEmpty());
}

TEST_F(ConnectionGuardTest, LeavesUnixSocketsAlone) {
  for (const std::string peer : {"unix:", "unix:/tmp/x", "unix-abstract:x"}) {
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(guard_.Begin(peer).ok());
    for (int i = 0; i < 20; ++i) guard_.End(peer, true);
  }
  EXPECT_THAT(cut_, IsEmpty());
}

TEST(ConnectionGuard, TakesOnlyYoungCallsForReset) {
  const auto now = steady_clock::now();
  EXPECT_TRUE(ConnectionGuard::IsReset(true, now));
  EXPECT_FALSE(ConnectionGuard::IsReset(false, now));
  EXPECT_FALSE(ConnectionGuard::IsReset(true, now - std::chrono::seconds(2)));
}

}  // namespace
}  // namespace gradclip
