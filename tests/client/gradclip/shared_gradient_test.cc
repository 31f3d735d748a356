// A shared gradient with a server that keeps to the contract, and with servers that do not share.
#include "gradclip/shared_gradient.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/shared_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST_F(SharedGradientTest, SendsRangesInPlaceOfBytes) {
  SharedGradient gradient = Make();
  const auto answer = gradient.ComputeNorm();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->total_norm, 5);
  EXPECT_TRUE(gradient.shared());
  EXPECT_TRUE(gradient.refusal().ok());
  const auto received = norm_.Get();
  ASSERT_EQ(received.starts.size(), 1u);
  EXPECT_EQ(received.starts[0].tensors_size(), 2);
  EXPECT_EQ(received.starts[0].tensors(1).name(), "b");
  EXPECT_THAT(received.messages, IsEmpty());
  ASSERT_EQ(received.shared.size(), 1u);
  EXPECT_THAT(received.shared[0].offset(), ElementsAre(0, 64));
  EXPECT_THAT(received.shared[0].length(), ElementsAre(12, 8));
  const FakeRegion region = socket_->regions().at(0);
  EXPECT_EQ(received.shared[0].region(),
            std::string(reinterpret_cast<const char*>(region.token.data()), region.token.size()));
  EXPECT_EQ(region.registration.length, 72u);
  EXPECT_EQ(*reinterpret_cast<const float*>(region.data + 68), 3.0f);
}

TEST_F(SharedGradientTest, ScalesItselfWithMemoryThatTheServerMayOnlyRead) {
  for (const ReplyMode mode : {ReplyMode::kFastest, ReplyMode::kCoefficient}) {
    SharedGradient gradient = Make();
    const auto answer = gradient.Clip(MaxNorm(1, mode));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->coefficient, 0.5);
    EXPECT_EQ(clip_.Get().starts.at(0).reply(), v1::REPLY_COEFFICIENT);
    EXPECT_EQ(socket_->regions().back().registration.flags, Registration::kReadOnly);
    EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
  }
}

TEST_F(SharedGradientTest, LetsTheServerClipInPlace) {
  for (const ReplyMode mode : {ReplyMode::kGradient, ReplyMode::kGradientIfChanged}) {
    SharedGradient gradient = Make();
    const auto answer = gradient.Clip(MaxNorm(1, mode));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(gradient.shared());
    EXPECT_EQ(socket_->regions().back().registration.flags, 0u);
    EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
  }
}

TEST_F(SharedGradientTest, LetsTheServerClipWhereTheNormIsKnown) {
  SharedGradient gradient = Make();
  ClipOptions options = MaxNorm(1);
  options.total_norm = 2;
  ASSERT_TRUE(gradient.Clip(options).ok());
  EXPECT_EQ(clip_.Get().starts.at(0).reply(), v1::REPLY_GRADIENT_IF_CHANGED);
  EXPECT_EQ(clip_.Get().starts.at(0).total_norm(), 2);
  EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
}

TEST_F(SharedGradientTest, RegistersOnceForManyCalls) {
  SharedGradient gradient = Make();
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(gradient.Clip(MaxNorm(1)).ok());
    EXPECT_TRUE(gradient.ComputeNorm().ok());
  }
  EXPECT_EQ(socket_->regions().size(), 1u);
  EXPECT_EQ(infos(), 1);
}

TEST_F(SharedGradientTest, RegistersAgainForWritingAndKeepsThat) {
  SharedGradient gradient = Make();
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_TRUE(gradient.Clip(MaxNorm(1, ReplyMode::kGradient)).ok());
  EXPECT_TRUE(gradient.Clip(MaxNorm(1, ReplyMode::kCoefficient)).ok());
  socket_->CloseAll();
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  const auto regions = socket_->regions();
  ASSERT_EQ(regions.size(), 3u);
  EXPECT_EQ(regions[0].registration.flags, Registration::kReadOnly);
  EXPECT_EQ(regions[1].registration.flags, 0u);
  EXPECT_EQ(regions[2].registration.flags, 0u);
}

TEST_F(SharedGradientTest, RegistersAgainWhereTheServerHasClosedTheConnection) {
  SharedGradient gradient = Make();
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  socket_->CloseAll();
  EXPECT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_TRUE(gradient.shared());
  EXPECT_EQ(socket_->regions().size(), 2u);
}

TEST_F(SharedGradientTest, RegistersAgainWhereTheServerHasForgottenTheRegion) {
  SharedGradient gradient = Make();
  for (const ReplyMode mode : {ReplyMode::kCoefficient, ReplyMode::kGradient}) {
    Fill(gradient);
    ASSERT_TRUE(gradient.Clip(MaxNorm(1, mode)).ok());
    const size_t registered = socket_->regions().size();
    std::atomic<bool> forgotten = false;
    server_.clip = [&](ClipStream& stream) {
      if (!forgotten.exchange(true)) {
        ReadAll(stream);
        return Unknown();
      }
      return Clip(stream);
    };
    Fill(gradient);
    const auto answer = gradient.Clip(MaxNorm(1, mode));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(gradient.shared());
    EXPECT_EQ(socket_->regions().size(), registered + 1);
    EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
    server_.clip = [this](ClipStream& stream) { return Clip(stream); };
  }
}

TEST_F(SharedGradientTest, MovesWithItsMemory) {
  SharedGradient first = Make();
  const void* const data = first.tensors()[1].data;
  SharedGradient second = std::move(first);
  EXPECT_EQ(second.tensors()[1].data, data);
  EXPECT_TRUE(second.ComputeNorm().ok());
  second = Make();
  EXPECT_TRUE(second.ComputeNorm().ok());
  EXPECT_EQ(socket_->regions().size(), 2u);
}

TEST_F(SharedGradientTest, CallsWithoutBytesShareNothing) {
  auto gradient = SharedGradient::Make(client_, {{{"e", DType::kFloat32, {0}}}});
  ASSERT_TRUE(gradient.ok());
  ASSERT_TRUE(gradient->Clip(MaxNorm(1)).ok());
  ASSERT_TRUE(gradient->ComputeNorm().ok());
  EXPECT_FALSE(gradient->shared());
  EXPECT_TRUE(gradient->refusal().ok());
  EXPECT_EQ(clip_.Get().starts.at(0).tensors_size(), 1);
}

TEST_F(SharedGradientTest, ReportsProgressInOneStep) {
  SharedGradient gradient = Make();
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  CallOptions call;
  call.progress = [&](uint64_t done, uint64_t total) { seen.emplace_back(done, total); };
  ASSERT_TRUE(gradient.Clip(MaxNorm(1), call).ok());
  ASSERT_TRUE(gradient.ComputeNorm({}, call).ok());
  EXPECT_THAT(seen, ElementsAre(Pair(0, 20), Pair(20, 20), Pair(0, 20), Pair(20, 20)));
}

TEST_F(SharedGradientTest, SendsManyRangesInSeveralMessages) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 40000; ++i) tensors.push_back({"", DType::kFloat32, {1}});
  auto gradient = SharedGradient::Make(client_, tensors);
  ASSERT_TRUE(gradient.ok());
  Fill(*gradient);
  ASSERT_TRUE(gradient->Clip(MaxNorm(1, ReplyMode::kGradient)).ok());
  EXPECT_EQ(clip_.Get().shared.size(), 2u);
  EXPECT_THAT(Values(*gradient), ::testing::Each(1));
}

TEST_F(SharedGradientTest, AdoptsMemoryOfTheCallers) {
  const int memfd = memfd_create("framework", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(memfd, 4096), 0);
  const std::vector<float> values = {4, 6, 8};
  ASSERT_EQ(pwrite(memfd, values.data(), 12, 100), 12);
  const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {2}}, {"b", DType::kFloat32, {}}};
  auto gradient = SharedGradient::Adopt(client_, memfd, tensors, {{100, 108}});
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  EXPECT_THAT(Values(*gradient), ElementsAre(4, 6, 8));
  ASSERT_TRUE(gradient->Clip(MaxNorm(1)).ok());
  EXPECT_THAT(clip_.Get().shared.at(0).offset(), ElementsAre(100));
  EXPECT_THAT(clip_.Get().shared.at(0).length(), ElementsAre(12));
  float clipped = 0;
  ASSERT_EQ(pread(memfd, &clipped, 4, 108), 4);
  EXPECT_EQ(clipped, 4);

  const auto refusal = [&](std::vector<uint64_t> offsets) {
    const auto adopted = SharedGradient::Adopt(client_, memfd, tensors, offsets);
    EXPECT_EQ(adopted.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(adopted.status().message());
  };
  EXPECT_THAT(refusal({0, 4}), HasSubstr("tensors \"a\" and \"b\" overlap"));
  EXPECT_THAT(refusal({0, 4096}), HasSubstr("beyond the memory's 4096 bytes"));
  EXPECT_THAT(refusal({2, 12}), HasSubstr("no multiple of 4"));
  EXPECT_THAT(refusal({0}), HasSubstr("1 offsets were given for 2 tensors"));
  close(memfd);
}

TEST_F(SharedGradientTest, RefusesTensorsThatCantBeDeclared) {
  const std::vector<Tensor> tensors = {{"w", DType::kFloat32, {-1}}};
  EXPECT_THAT(SharedGradient::Make(client_, tensors).status().message(),
              HasSubstr("tensor \"w\": shape [-1] has the negative extent"));
  EXPECT_EQ(SharedGradient::Adopt(client_, -1, tensors, {{0}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  SharedGradient gradient = Make();
  EXPECT_THAT(gradient.Clip(ClipOptions()).status().message(), HasSubstr("max_norm is -1"));
}

// Streamed instead of shared, and why.

TEST_F(SharedGradientTest, StreamsWhereTheServerHasNoMemorySocketAndSaysSoOnce) {
  server_.info = [this](v1::GetServerInfoResponse&) {
    ++infos_;
    return grpc::Status::OK;
  };
  SharedGradient gradient = Make();
  for (int i = 0; i < 3; ++i) {
    Fill(gradient);
    const auto answer = gradient.Clip(MaxNorm(1));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_FALSE(gradient.shared());
    EXPECT_EQ(gradient.refusal().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Values(gradient), ElementsAre(1, 1.5, 2, 1, 1.5));
    EXPECT_EQ(clip_.Get().data().size(), 20u);
    ASSERT_TRUE(gradient.ComputeNorm().ok());
    EXPECT_FALSE(gradient.shared());
  }
  EXPECT_EQ(infos(), 1);
  EXPECT_THAT(warnings_,
              ElementsAre("the gradient is streamed: server " + server_.address() +
                          " can't share memory: it has no memory socket (--memory-socket=PATH "
                          "there makes one)"));
}

TEST_F(SharedGradientTest, StreamsWhereTheMemorySocketRefuses) {
  socket_.reset();
  socket_.emplace(path_, FakeMemorySocket::Refuse(8, "1024 regions are the most: --max-regions"));
  SharedGradient gradient = Make();
  ASSERT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_FALSE(gradient.shared());
  EXPECT_EQ(gradient.refusal().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("--max-regions")));
  EXPECT_EQ(norm_.Get().data().size(), 20u);
}

TEST_F(SharedGradientTest, StreamsWhereNobodyListensAtTheMemorySocket) {
  socket_.reset();
  unlink(path_.c_str());
  SharedGradient gradient = Make();
  ASSERT_TRUE(gradient.ComputeNorm().ok());
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr(path_ + ": can't connect: No such file")));
}

TEST_F(SharedGradientTest, StreamsWhereAnotherServerListensAtTheMemorySocket) {
  server_.compute_norm = [this](NormStream& stream, v1::ComputeNormResponse& response) {
    const auto received = ReadAll(stream);
    if (!received.shared.empty()) return Unknown();
    norm_.Set(received);
    response.mutable_norm()->set_total_norm(5);
    return grpc::Status::OK;
  };
  SharedGradient gradient = Make();
  const auto answer = gradient.ComputeNorm();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_FALSE(gradient.shared());
  EXPECT_EQ(socket_->regions().size(), 1u);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("another server listens there")));
}

TEST_F(SharedGradientTest, AsksAgainAfterAWhileAndWarnsOfEachFall) {
  socket_.reset();
  SharedGradientOptions options;
  options.ask_again_after = absl::ZeroDuration();
  SharedGradient gradient = Make(options);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(gradient.ComputeNorm().ok());
    ASSERT_TRUE(gradient.ComputeNorm().ok());
    EXPECT_FALSE(gradient.shared());
    EXPECT_EQ(warnings_.size(), i + 1u);
    socket_.emplace(path_);
    ASSERT_TRUE(gradient.ComputeNorm().ok());
    EXPECT_TRUE(gradient.shared());
    EXPECT_TRUE(gradient.refusal().ok());
    socket_.reset();
  }
}

TEST_F(SharedGradientTest, WarnsOnStandardErrorByItself) {
  socket_.reset();
  auto gradient = SharedGradient::Make(client_, {{{"a", DType::kFloat32, {1}}}});
  ASSERT_TRUE(gradient.ok());
  testing::internal::CaptureStderr();
  ASSERT_TRUE(gradient->ComputeNorm().ok());
  ASSERT_TRUE(gradient->ComputeNorm().ok());
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, AllOf(::testing::StartsWith("gradclip: the gradient is streamed"),
                          ::testing::EndsWith("Connection refused\n")));
}

TEST_F(SharedGradientTest, IsAnErrorWhereSharingIsRequired) {
  socket_.reset();
  SharedGradientOptions options;
  options.require_shared = true;
  SharedGradient gradient = Make(options);
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = gradient.Clip(MaxNorm(1)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("server " + server_.address() + " can't share memory: "),
                      HasSubstr(path_)));
  }
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_THAT(Values(gradient), ElementsAre(2, 3, 4, 2, 3));
}

TEST_F(SharedGradientTest, StreamsWithWhatIsLeftOfTheTimeout) {
  socket_.reset();
  SharedGradient gradient = Make();
  CallOptions call;
  call.timeout = absl::Minutes(1);
  EXPECT_TRUE(gradient.Clip(MaxNorm(1), call).ok());
  call.timeout = absl::ZeroDuration();
  EXPECT_EQ(gradient.Clip(MaxNorm(1), call).status().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace gradclip
