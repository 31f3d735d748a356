// A gradient in memory of a GPU with scripted servers: what is handed over, who multiplies, and
// what becomes of refusals.
#include "gradclip/cuda_gradient.h"

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/shared_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Code = absl::StatusCode;

class CudaGradientTest : public SharedGradientTest {
 protected:
  // 3 and 2 numbers with padding between them.
  static std::vector<Tensor> Tensors() {
    return {{"a", DType::kFloat32, {3}}, {"b", DType::kFloat32, {2}}};
  }

  static CudaMemory Memory() {
    CudaMemory memory = {.offset = 256, .bytes = 128};
    memory.handle.fill(std::byte{1});
    memory.uuid.fill(std::byte{2});
    return memory;
  }

  CudaGradient Make() {
    auto made = CudaGradient::Make(client_, Memory(), Tensors(), {{0, 64}});
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }

  absl::Status Refusal(const CudaMemory& memory, std::vector<uint64_t> offsets) {
    return CudaGradient::Make(client_, memory, Tensors(), offsets).status();
  }
};

TEST_F(CudaGradientTest, HandsTheAllocationOverAndSendsNoByteOfIt) {
  CudaGradient gradient = Make();
  EXPECT_EQ(infos(), 0);
  const auto answer = gradient.ComputeNorm();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->total_norm, 5);
  ASSERT_EQ(socket_->regions().size(), 1u);
  const FakeRegion region = socket_->regions()[0];
  EXPECT_EQ(region.registration.kind, Registration::kCudaMemory);
  EXPECT_EQ(region.registration.flags, Registration::kReadOnly);
  EXPECT_EQ(region.registration.length, 128u);
  EXPECT_EQ(region.registration.offset, 256u);
  EXPECT_EQ(region.allocation.handle, Memory().handle);
  EXPECT_EQ(region.allocation.uuid, Memory().uuid);
  const auto received = norm_.Get();
  EXPECT_EQ(received.data(), "");
  ASSERT_EQ(received.shared.size(), 1u);
  EXPECT_THAT(received.shared[0].offset(), ElementsAre(0, 64));
  EXPECT_THAT(received.shared[0].length(), ElementsAre(12, 8));
  // The next call finds it registered.
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_EQ(socket_->regions().size(), 1u);
}

TEST_F(CudaGradientTest, IsClippedByTheServerInPlace) {
  CudaGradient gradient = Make();
  for (const ReplyMode mode :
       {ReplyMode::kFastest, ReplyMode::kGradient, ReplyMode::kGradientIfChanged}) {
    const auto answer = gradient.Clip(MaxNorm(1, mode));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->coefficient, 0.5);
    EXPECT_NE(clip_.Get().starts.at(0).reply(), v1::REPLY_COEFFICIENT);
    ASSERT_EQ(socket_->regions().size(), 1u);
    EXPECT_EQ(socket_->regions()[0].registration.flags, 0u);
  }
}

TEST_F(CudaGradientTest, LeavesMultiplyingToTheCallerWhereTheCoefficientIsAskedFor) {
  CudaGradient gradient = Make();
  const auto answer = gradient.Clip(MaxNorm(1, ReplyMode::kCoefficient));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->coefficient, 0.5);
  EXPECT_EQ(socket_->regions().at(0).registration.flags, Registration::kReadOnly);
  EXPECT_EQ(clip_.Get().starts.at(0).reply(), v1::REPLY_COEFFICIENT);
}

TEST_F(CudaGradientTest, EndsWithTheServersReasonWhereItIsRefused) {
  CudaGradient gradient = Make();
  for (const auto& [code, text] :
       {std::pair(Code::kUnimplemented, "it was not told to: --allow-cuda-ipc"),
        std::pair(Code::kFailedPrecondition, "it uses no GPU of this UUID")}) {
    socket_.reset();
    socket_.emplace(path_, FakeMemorySocket::Refuse(static_cast<uint32_t>(code), text));
    for (const absl::Status& status :
         {gradient.ComputeNorm().status(), gradient.Clip(MaxNorm(1)).status()}) {
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_THAT(status.message(),
                  AllOf(HasSubstr("server " + server_.address()), HasSubstr(text)));
    }
  }
  // It is asked each time, so that a call does what it can as soon as it can.
  socket_.reset();
  socket_.emplace(path_);
  EXPECT_TRUE(gradient.Clip(MaxNorm(1)).ok());
  EXPECT_TRUE(clip_.Get().data().empty());
}

TEST_F(CudaGradientTest, IsNotStreamedWhereTheServerHasNoMemorySocket) {
  server_.info = [](v1::GetServerInfoResponse&) { return grpc::Status::OK; };
  CudaGradient gradient = Make();
  const absl::Status status = gradient.Clip(MaxNorm(1)).status();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("--memory-socket"));
}

TEST_F(CudaGradientTest, IsDataLossWhereTheServerMayHaveWritten) {
  CudaGradient gradient = Make();
  server_.clip = [](ClipStream& stream) {
    ReadAll(stream);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cuda/0: an illegal address");
  };
  const absl::Status status = gradient.Clip(MaxNorm(1)).status();
  EXPECT_EQ(status.code(), Code::kDataLoss) << status;
  EXPECT_THAT(status.message(), HasSubstr("cuda/0: an illegal address"));
}

TEST_F(CudaGradientTest, IsRegisteredAnewWithAServerThatHasRestarted) {
  CudaGradient gradient = Make();
  ASSERT_TRUE(gradient.Clip(MaxNorm(1)).ok());
  socket_.reset();
  socket_.emplace(path_);
  ASSERT_TRUE(gradient.Clip(MaxNorm(1)).ok());
  EXPECT_EQ(socket_->regions().size(), 1u);
}

TEST_F(CudaGradientTest, IsReleasedOnceTheServerHasLetGo) {
  CudaGradient gradient = Make();
  EXPECT_TRUE(gradient.Release(absl::ZeroDuration()));
  ASSERT_TRUE(gradient.ComputeNorm().ok());
  const auto over = std::make_shared<absl::Notification>();
  socket_->BeforeClose([over] { over->WaitForNotification(); });
  EXPECT_FALSE(gradient.Release(absl::Milliseconds(20)));
  EXPECT_FALSE(gradient.Release(absl::Milliseconds(20)));
  over->Notify();
  EXPECT_TRUE(gradient.Release(absl::InfiniteDuration()));
  ASSERT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_EQ(socket_->regions().size(), 2u);
}

// A call that timed out may still read it by the first registration, when the second is there.
TEST_F(CudaGradientTest, IsReleasedOnceAllThatWasRegisteredIs) {
  CudaGradient gradient = Make();
  ASSERT_TRUE(gradient.ComputeNorm().ok());
  const auto over = std::make_shared<absl::Notification>();
  const auto first = std::make_shared<std::atomic<bool>>(true);
  socket_->BeforeClose([over, first] {
    if (first->exchange(false)) over->WaitForNotification();
  });
  ASSERT_TRUE(gradient.Clip(MaxNorm(1)).ok());  // in place: registers it for writing
  EXPECT_EQ(socket_->regions().size(), 2u);
  EXPECT_FALSE(gradient.Release(absl::Milliseconds(20)));
  over->Notify();
  EXPECT_TRUE(gradient.Release(absl::InfiniteDuration()));
}

TEST_F(CudaGradientTest, WaitsWhenItIsDestroyed) {
  std::atomic<bool> released = false;
  {
    CudaGradient gradient = Make();
    ASSERT_TRUE(gradient.ComputeNorm().ok());
    socket_->BeforeClose([&released] { released = true; });
    CudaGradient moved = std::move(gradient);
    moved = Make();
    EXPECT_TRUE(released);
    released = false;
    ASSERT_TRUE(moved.ComputeNorm().ok());
  }
  EXPECT_TRUE(released);
}

TEST_F(CudaGradientTest, NeedsNoMemoryWithoutElements) {
  auto gradient = CudaGradient::Make(client_, {}, {{{"a", DType::kFloat32, {0}}}}, {{0}});
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  EXPECT_TRUE(gradient->ComputeNorm().ok());
  EXPECT_EQ(socket_->regions().size(), 0u);
}

TEST_F(CudaGradientTest, SaysWhichTensorDoesNotFit) {
  absl::Status status = Refusal(Memory(), {0, 124});
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("tensor \"b\": 8 bytes"), HasSubstr("128 bytes")));
  EXPECT_THAT(Refusal(Memory(), {0, 66}).message(), HasSubstr("no multiple of 4"));
  EXPECT_THAT(Refusal(Memory(), {0, 8}).message(), HasSubstr("tensors \"a\" and \"b\" overlap"));
  EXPECT_THAT(Refusal(Memory(), {0}).message(), HasSubstr("1 offsets"));
  CudaMemory odd = Memory();
  odd.offset = 258;
  EXPECT_THAT(Refusal(odd, {0, 64}).message(), HasSubstr("byte 258 of its allocation"));
  EXPECT_EQ(infos(), 0);
}

}  // namespace
}  // namespace gradclip
