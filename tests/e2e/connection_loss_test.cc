// The client library and a server that is killed, stopped, drained or restarted while they talk.
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"
#include "tests/client/files/file_bytes.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// 64 MiB, far more than sockets and windows hold, of ones; every clip below halves it exactly.
constexpr size_t kElements = size_t{16} << 20;

class ConnectionLoss : public testing::Test {
 protected:
  ConnectionLoss() : values_(kElements, 1.0f) {
    tensor_ = {"w", DType::kFloat32, {static_cast<int64_t>(kElements)}, values_.data()};
  }

  // The norm is 4096.
  absl::StatusOr<ClipAnswer> Clip(Client& client, ReplyMode reply, const CallOptions& call) {
    ClipOptions options;
    options.max_norm = 2048;
    options.epsilon = 0;
    options.reply = reply;
    // A server that is told the norm sends bytes back while others still go out.
    if (reply == ReplyMode::kGradient) options.total_norm = 4096;
    return client.Clip({&tensor_, 1}, options, call);
  }

  // Calls `act` once, when half of a call's bytes are through.
  static CallOptions AtHalf(std::function<void()> act) {
    CallOptions call;
    call.progress = [act = std::move(act), acted = false](uint64_t done, uint64_t total) mutable {
      if (acted || done < total / 2) return;
      acted = true;
      act();
    };
    return call;
  }

  // How many elements from the front are halved; -1 where others than those are not ones.
  int64_t Halved() const {
    const auto rest =
        std::find_if(values_.begin(), values_.end(), [](float v) { return v != 0.5f; });
    return std::count(rest, values_.end(), 1.0f) == values_.end() - rest ? rest - values_.begin()
                                                                         : -1;
  }

  const Folder folder_;
  const std::string address_ = "unix:" + folder_ / "server";
  std::unique_ptr<ServerProcess> server_ = Serve();
  std::vector<float> values_;
  Tensor tensor_;

  std::unique_ptr<ServerProcess> Serve() const {
    return std::make_unique<ServerProcess>(std::vector<std::string>{"--listen=" + address_});
  }
};

TEST_F(ConnectionLoss, IsDataLossAndNeverTriedAgainWhereClippedBytesHaveComeBack) {
  Client client(address_);
  const auto restart = [this] {
    server_->process().Signal(SIGKILL);
    server_ = Serve();  // so that a second try would succeed
  };
  const absl::Status status = Clip(client, ReplyMode::kGradient, AtHalf(restart)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("server " + address_),
                                      HasSubstr("some tensors are clipped and some are not")));
  EXPECT_GT(Halved(), 0);
  EXPECT_LT(Halved(), static_cast<int64_t>(kElements));
}

TEST_F(ConnectionLoss, IsTriedAgainWhereTheClientScalesItself) {
  Client client(address_);
  const auto restart = [this] {
    server_->process().Signal(SIGKILL);
    server_ = Serve();
  };
  const auto answer = Clip(client, ReplyMode::kCoefficient, AtHalf(restart));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->norm.total_norm, 4096);
  EXPECT_EQ(Halved(), static_cast<int64_t>(kElements));
}

TEST_F(ConnectionLoss, LeavesTheMemoryAsItWasWhereTheServerStaysAway) {
  ClientOptions options;
  options.max_retries = 1;
  options.initial_backoff = absl::Milliseconds(1);
  Client client(address_, options);
  const auto kill = [this] { server_.reset(); };
  const absl::Status status = Clip(client, ReplyMode::kCoefficient, AtHalf(kill)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("server " + address_), HasSubstr("tried 2 times")));
  EXPECT_EQ(Halved(), 0);
}

TEST_F(ConnectionLoss, OfAServerThatStopsEndsAtTheDeadline) {
  Client client(address_);
  CallOptions call = AtHalf([this] { server_->process().Signal(SIGSTOP); });
  call.timeout = absl::Seconds(3);
  absl::Status status = Clip(client, ReplyMode::kCoefficient, call).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(status.message(), HasSubstr("the call's timeout is over"));
  EXPECT_EQ(Halved(), 0);

  server_->process().Signal(SIGCONT);
  call = AtHalf([this] { server_->process().Signal(SIGSTOP); });
  call.timeout = absl::Seconds(3);
  status = Clip(client, ReplyMode::kGradient, call).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(), HasSubstr("DEADLINE_EXCEEDED: the call's timeout is over"));
  EXPECT_GT(Halved(), 0);
}

TEST_F(ConnectionLoss, IsNoneForACallThatRunsWhenTheServerIsToldToStop) {
  for (const ReplyMode reply : {ReplyMode::kGradientIfChanged, ReplyMode::kGradient}) {
    std::fill(values_.begin(), values_.end(), 1.0f);
    Client client(address_);
    const auto answer = Clip(client, reply, AtHalf([this] { server_->process().Signal(SIGTERM); }));
    EXPECT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(Halved(), static_cast<int64_t>(kElements));
    EXPECT_EQ(server_->process().Wait(), 0);
    server_ = Serve();
  }
}

TEST_F(ConnectionLoss, OfAnIdleClientIsNotPutOffUntilTheDrainTimeout) {
  server_.reset();
  server_ = std::make_unique<ServerProcess>(
      std::vector<std::string>{"--listen=" + address_, "--drain-timeout=24h"});
  Client client(address_);
  const auto answer = Clip(client, ReplyMode::kGradientIfChanged, {});
  EXPECT_TRUE(answer.ok()) << answer.status();
  server_->process().Signal(SIGTERM);
  EXPECT_EQ(server_->process().Wait(), 0);
}

// A server ends connections that have been idle for long enough. To callers that is nothing: above
// all not the loss of data that was to be clipped in place.
TEST_F(ConnectionLoss, BetweenCallsIsNotNoticed) {
  const std::string memory = folder_ / "memory";
  server_.reset();
  server_ = std::make_unique<ServerProcess>(std::vector<std::string>{
      "--listen=" + address_, "--memory-socket=" + memory, "--connection-idle-timeout=100ms"});
  Client client(address_);
  SharedGradientOptions shared;
  shared.require_shared = true;
  const std::vector<Tensor> tensors = {{.name = "w", .shape = {2}}};
  absl::StatusOr<SharedGradient> gradient = SharedGradient::Make(client, tensors, shared);
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  ClipOptions options;
  options.max_norm = 2.5;
  options.epsilon = 0;
  options.reply = ReplyMode::kGradient;  // the server scales
  for (const int pause : {0, 10, 200, 0, 300, 400, 10, 500}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(pause));
    auto* const elements = static_cast<float*>(gradient->tensors()[0].data);
    elements[0] = 3;
    elements[1] = 4;
    const absl::StatusOr<ClipAnswer> answer = gradient->Clip(options);
    ASSERT_TRUE(answer.ok()) << "after " << pause << " ms: " << answer.status();
    EXPECT_EQ(elements[0], 1.5f);
    EXPECT_EQ(elements[1], 2.0f);
  }
}

}  // namespace
}  // namespace gradclip
