// A shared gradient with servers that refuse, fail or stop amid a call.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gradclip/shared_gradient.h"
#include "tests/client/gradclip/shared_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Code = absl::StatusCode;

class SharedFailure : public SharedGradientTest {
 protected:
  // Answers calls over shared memory with a status, after it has been handed the ranges.
  void FailWith(grpc::Status status) {
    server_.clip = [this, status](ClipStream& stream) {
      ++calls_;
      ReadAll(stream);
      return status;
    };
  }

  std::atomic<int> calls_ = 0;
};

TEST_F(SharedFailure, GivesTheServersRefusalWithItsAddress) {
  SharedGradient gradient = Make();
  for (const ReplyMode mode : {ReplyMode::kCoefficient, ReplyMode::kGradient}) {
    for (const auto code :
         {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::RESOURCE_EXHAUSTED,
          grpc::StatusCode::PERMISSION_DENIED}) {
      FailWith(grpc::Status(code, "because"));
      const absl::Status status = gradient.Clip(MaxNorm(1, mode)).status();
      EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code)) << status;
      EXPECT_EQ(status.message(), "server " + server_.address() + ": because");
    }
  }
  EXPECT_EQ(calls_, 6);
  EXPECT_EQ(socket_->regions().size(), 2u);  // it has let nobody go
  EXPECT_THAT(Values(gradient), ElementsAre(2, 3, 4, 2, 3));
}

TEST_F(SharedFailure, RegistersAnewWhereTheRegionMayHaveLostPages) {
  SharedGradient gradient = Make();
  FailWith(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "the region has lost pages"));
  EXPECT_EQ(gradient.Clip(MaxNorm(1)).status().code(), Code::kFailedPrecondition);
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_EQ(socket_->regions().size(), 2u);
}

TEST_F(SharedFailure, IsTriedAgainWhereTheServerOnlyReads) {
  SharedGradient gradient = Make();
  server_.clip = [&](ClipStream& stream) {
    if (++calls_ == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    if (calls_ == 2) {
      ReadAll(stream);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "lost");
    }
    return Clip(stream);
  };
  ASSERT_TRUE(gradient.Clip(MaxNorm(1)).ok());
  EXPECT_EQ(calls_, 3);
  EXPECT_TRUE(gradient.shared());
  EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
}

TEST_F(SharedFailure, IsTriedAgainInPlaceUntilTheMemoryIsHandedOver) {
  SharedGradient gradient = Make();
  std::atomic<int> infos = 0;
  server_.info = [&](v1::GetServerInfoResponse& response) {
    if (++infos <= 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
    response.set_memory_socket(path_);
    return grpc::Status::OK;
  };
  ASSERT_TRUE(gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).ok());
  EXPECT_EQ(infos, 3);
  EXPECT_TRUE(gradient.shared());
  EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
}

TEST_F(SharedFailure, IsDataLossAndNeverTriedAgainWhereTheServerMayHaveWritten) {
  SharedGradient gradient = Make();
  server_.clip = [&](ClipStream& stream) {
    ++calls_;
    const auto received = ReadAll(stream);
    SendResult(stream, 0.5, true);
    // One tensor is clipped, and then the server is no more.
    auto* const values = reinterpret_cast<float*>(Find(received.shared.at(0))->data);
    std::for_each(values, values + 3, [](float& value) { value /= 2; });
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server stops");
  };
  const absl::Status status = gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).status();
  EXPECT_EQ(status.code(), Code::kDataLoss) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("server " + server_.address()),
                    HasSubstr("it may be clipped, or in part (UNAVAILABLE: the server stops)"),
                    Not(HasSubstr("has not let go"))));
  EXPECT_EQ(calls_, 1);
  EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 2, 3));

  server_.clip = [this](ClipStream& stream) { return Clip(stream); };
  EXPECT_TRUE(gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).ok());
  EXPECT_EQ(socket_->regions().size(), 2u);
}

TEST_F(SharedFailure, IsDataLossWhereTheServerFailsWithoutAResult) {
  SharedGradient gradient = Make();
  for (const auto code :
       {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN, grpc::StatusCode::CANCELLED}) {
    FailWith(grpc::Status(code, "oops"));
    EXPECT_EQ(gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).status().code(), Code::kDataLoss);
    EXPECT_EQ(static_cast<int>(gradient.Clip(MaxNorm(1)).status().code()), static_cast<int>(code));
  }
}

TEST_F(SharedFailure, IsDataLossWhereTheServerBreaksTheContract) {
  server_.clip = [](ClipStream& stream) {
    ReadAll(stream);
    SendResult(stream, 0.5, true);
    SendData(stream, "0123");
    return grpc::Status::OK;
  };
  SharedGradient gradient = Make();
  const absl::Status status = gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).status();
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("INTERNAL: the server sent 4 bytes back"));
  server_.clip = [](ClipStream& stream) {
    ReadAll(stream);
    return grpc::Status::OK;
  };
  EXPECT_EQ(gradient.Clip(MaxNorm(1)).status().code(), Code::kInternal);
  server_.compute_norm = [](NormStream& stream, v1::ComputeNormResponse&) {
    ReadAll(stream);
    return grpc::Status(grpc::StatusCode::UNKNOWN, "?");
  };
  EXPECT_EQ(gradient.ComputeNorm().status().code(), Code::kUnknown);
}

TEST_F(SharedFailure, ReturnsOnlyOnceTheServerHasLetGoOfTheMemory) {
  SharedGradient gradient = Make();
  // Outlives the thread that waits for it.
  const auto over = std::make_shared<absl::Notification>();
  server_.clip = [over](ClipStream& stream) {
    ReadAll(stream);
    over->WaitForNotification();
    return grpc::Status::OK;
  };
  std::atomic<bool> released = false;
  socket_->BeforeClose([&released, over] {
    released = true;
    over->Notify();
  });
  CallOptions call;
  call.timeout = absl::Seconds(2);
  const absl::Status status = gradient.Clip(MaxNorm(1, ReplyMode::kGradient), call).status();
  EXPECT_EQ(status.code(), Code::kDataLoss) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("DEADLINE_EXCEEDED: the call's timeout is over"),
                                      Not(HasSubstr("has not let go"))));
  EXPECT_TRUE(released);
}

TEST_F(SharedFailure, SaysWhereTheServerDoesNotLetGo) {
  SharedGradient gradient = Make();
  // Outlives the thread that waits for it.
  const auto over = std::make_shared<absl::Notification>();
  FailWith(grpc::Status(grpc::StatusCode::INTERNAL, "oops"));
  socket_->BeforeClose([over] { over->WaitForNotification(); });
  const absl::Status status = gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).status();
  over->Notify();
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("has not let go of it, may still write to it"));
}

TEST_F(SharedFailure, EndsAtTheDeadlineOfASilentMemorySocket) {
  socket_.reset();
  socket_.emplace(path_, [](int, const RegionToken&) { return std::string(); });
  SharedGradient gradient = Make();
  CallOptions call;
  call.timeout = absl::Milliseconds(300);
  const absl::Status status = gradient.Clip(MaxNorm(1, ReplyMode::kGradient), call).status();
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded) << status;
  EXPECT_THAT(status.message(), HasSubstr(path_));
  EXPECT_THAT(Values(gradient), ElementsAre(2, 3, 4, 2, 3));
}

TEST_F(SharedFailure, NamesTheServerThatCantBeReached) {
  Client nowhere("unix:" + folder_ / "none", ClientOptions{.max_retries = 0});
  auto gradient = SharedGradient::Make(nowhere, {{{"a", DType::kFloat32, {1}}}});
  ASSERT_TRUE(gradient.ok());
  const absl::Status status = gradient->Clip(MaxNorm(1, ReplyMode::kGradient)).status();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("server unix:" + folder_ / "none"));
  EXPECT_FALSE(gradient->shared());
}

}  // namespace
}  // namespace gradclip
