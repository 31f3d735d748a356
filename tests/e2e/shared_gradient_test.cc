// Shared gradients with a server of its own process: to the bit what streaming gives, and what
// becomes of them where the server is stopped, killed or started again.
#include "gradclip/shared_gradient.h"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/files/gradient_file.h"
#include "gradclip/client.h"
#include "tests/e2e/command_fixture.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr ReplyMode kModes[] = {ReplyMode::kCoefficient, ReplyMode::kGradient,
                                ReplyMode::kGradientIfChanged};

class Sharing : public testing::Test {
 protected:
  void Serve(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--listen=" + address_, "--memory-socket=" + folder_ / "memory"});
    server_ = std::make_unique<ServerProcess>(more);
  }
  void Kill() {
    server_->process().Signal(SIGKILL);
    server_.reset();  // which waits
  }
  // Returns once none of its threads runs.
  void Stop() {
    server_->process().Signal(SIGSTOP);
    ASSERT_EQ(waitpid(server_->process().pid(), nullptr, WUNTRACED), server_->process().pid());
  }

  static SharedGradientOptions Required() {
    SharedGradientOptions options;
    options.require_shared = true;
    return options;
  }

  // `elements` ones.
  static absl::StatusOr<SharedGradient> Ones(Client& client, int64_t elements) {
    auto gradient =
        SharedGradient::Make(client, {{{"w", DType::kFloat32, {elements}}}}, Required());
    if (gradient.ok()) Fill(*gradient);
    return gradient;
  }
  static void Fill(const SharedGradient& gradient) {
    auto* const values = static_cast<float*>(gradient.tensors()[0].data);
    std::fill(values, values + gradient.tensors()[0].elements(), 1.0f);
  }
  static int64_t Count(const SharedGradient& gradient, float value) {
    const auto* const values = static_cast<const float*>(gradient.tensors()[0].data);
    return std::count(values, values + gradient.tensors()[0].elements(), value);
  }

  // Halves `elements` ones.
  static ClipOptions Half(int64_t elements, ReplyMode mode) {
    ClipOptions options;
    options.max_norm = static_cast<double>(elements) / 2;
    options.norm.norm_type = 1;
    options.epsilon = 0;
    options.reply = mode;
    return options;
  }

  const Folder folder_;
  const std::string address_ = "unix:" + folder_ / "server";
  std::unique_ptr<ServerProcess> server_;
};

TEST_F(Sharing, GivesTheBitsOfStreaming) {
  Serve();
  Client client(address_);
  for (const std::string stem : {"step-001", "step-060", "step-060-bf16", "step-090"}) {
    for (const ReplyMode mode : kModes) {
      auto streamed = GradientFile::Read(kGradients + stem + ".safetensors");
      ASSERT_TRUE(streamed.ok());
      auto shared = SharedGradient::Make(client, streamed->tensors(), Required());
      ASSERT_TRUE(shared.ok()) << shared.status();
      for (size_t i = 0; i < shared->tensors().size(); ++i) {
        const Tensor& tensor = shared->tensors()[i];
        std::memcpy(tensor.data, streamed->tensors()[i].data, tensor.bytes());
      }
      NormOptions measure;
      measure.per_tensor = true;
      const auto norm = shared->ComputeNorm(measure);
      ASSERT_TRUE(norm.ok()) << norm.status();
      const auto streamed_norm = client.ComputeNorm(streamed->tensors(), measure);
      ASSERT_TRUE(streamed_norm.ok()) << streamed_norm.status();
      EXPECT_EQ(norm->total_norm, streamed_norm->total_norm);
      ClipOptions options;
      options.max_norm = 0.25;
      options.reply = mode;
      options.norm = measure;
      const auto expected = client.Clip(streamed->tensors(), options);
      ASSERT_TRUE(expected.ok()) << expected.status();
      const auto answer = shared->Clip(options);
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_EQ(answer->norm.total_norm, expected->norm.total_norm);
      EXPECT_EQ(answer->coefficient, expected->coefficient);
      EXPECT_EQ(answer->clipped, expected->clipped);
      ASSERT_EQ(answer->norm.tensors.size(), shared->tensors().size());
      for (size_t i = 0; i < shared->tensors().size(); ++i) {
        const Tensor& tensor = shared->tensors()[i];
        EXPECT_EQ(answer->norm.tensors[i].norm, expected->norm.tensors[i].norm);
        EXPECT_EQ(std::memcmp(tensor.data, streamed->tensors()[i].data, tensor.bytes()), 0)
            << stem << " " << tensor.name;
      }
    }
  }
}

TEST_F(Sharing, GoesOnWithAServerThatWasStartedAgain) {
  constexpr int64_t kElements = 100000;
  Serve();
  Client client(address_);
  auto gradient = Ones(client, kElements);
  ASSERT_TRUE(gradient.ok());
  for (const ReplyMode mode : kModes) {
    ASSERT_TRUE(gradient->ComputeNorm().ok());
    Kill();
    Serve();
    Fill(*gradient);
    const auto answer = gradient->Clip(Half(kElements, mode));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->coefficient, 0.5);
    EXPECT_TRUE(gradient->shared());
    EXPECT_EQ(Count(*gradient, 0.5f), kElements);
  }
}

TEST_F(Sharing, IsDataLossAtMostWhereTheServerIsKilledAmidACall) {
  constexpr int64_t kElements = int64_t{32} << 20;
  Serve({"--compute-threads=1"});
  Client client(address_, ClientOptions{.max_retries = 0});
  auto gradient = Ones(client, kElements);
  ASSERT_TRUE(gradient.ok());
  absl::Status status;
  std::thread caller(
      [&] { status = gradient->Clip(Half(kElements, ReplyMode::kGradient)).status(); });
  // The server begins somewhere; every 4096th element is looked at.
  auto* const values = static_cast<float*>(gradient->tensors()[0].data);
  for (int64_t i = 0;; i = (i + 4096) % kElements) {
    float value;
    __atomic_load(&values[i], &value, __ATOMIC_RELAXED);
    if (value != 1.0f) break;
  }
  Kill();
  caller.join();
  EXPECT_EQ(Count(*gradient, 0.5f) + Count(*gradient, 1.0f), kElements);
  if (status.ok()) {  // it was faster
    EXPECT_EQ(Count(*gradient, 0.5f), kElements);
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("server " + address_), HasSubstr("it may be clipped, or in part")));
  }
}

TEST_F(Sharing, OfAServerThatStopsEndsAtTheDeadline) {
  constexpr int64_t kElements = 1000;
  Serve();
  Client client(address_);
  auto gradient = Ones(client, kElements);
  // Registered for writing, and a connection is there.
  ASSERT_TRUE(gradient->Clip(Half(kElements, ReplyMode::kGradient)).ok());
  Fill(*gradient);
  Stop();
  CallOptions call;
  call.timeout = absl::Milliseconds(500);
  absl::Status status = gradient->Clip(Half(kElements, ReplyMode::kCoefficient), call).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(Count(*gradient, 1.0f), kElements);
}

TEST_F(Sharing, SaysThatAStoppedServerMayStillWrite) {
  constexpr int64_t kElements = 1000;
  Serve();
  Client client(address_);
  auto gradient = Ones(client, kElements);
  ASSERT_TRUE(gradient->Clip(Half(kElements, ReplyMode::kGradient)).ok());
  Fill(*gradient);
  Stop();
  CallOptions call;
  call.timeout = absl::Milliseconds(500);
  const absl::Status status = gradient->Clip(Half(kElements, ReplyMode::kGradient), call).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("which has not let go of it"), HasSubstr("DEADLINE_EXCEEDED")));
  Kill();
  Serve();
  Fill(*gradient);
  ASSERT_TRUE(gradient->Clip(Half(kElements, ReplyMode::kGradient)).ok());
  EXPECT_EQ(Count(*gradient, 0.5f), kElements);
}

TEST_F(Sharing, ServesTwoClientsAtOnce) {
  Serve();
  std::vector<std::thread> threads;
  for (const int64_t elements : {1000, 300000}) {
    threads.emplace_back([this, elements] {
      Client client(address_);
      auto gradient = Ones(client, elements);
      ASSERT_TRUE(gradient.ok());
      for (int round = 0; round < 20; ++round) {
        const ReplyMode mode = kModes[round % 3];
        Fill(*gradient);
        const auto answer = gradient->Clip(Half(elements, mode));
        ASSERT_TRUE(answer.ok()) << answer.status();
        EXPECT_EQ(answer->norm.total_norm, static_cast<double>(elements));
        EXPECT_EQ(Count(*gradient, 0.5f), elements);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Sharing, StreamsWhatIsOverTheServersLimits) {
  Serve({"--max-regions=1"});
  Client client(address_);
  auto first = Ones(client, 100);
  ASSERT_TRUE(first->ComputeNorm().ok());
  std::vector<std::string> warnings;
  SharedGradientOptions options;
  options.ask_again_after = absl::ZeroDuration();
  options.warn = [&](const std::string& warning) { warnings.push_back(warning); };
  auto second = SharedGradient::Make(client, {{{"w", DType::kFloat32, {50}}}}, options);
  Fill(*second);
  const auto answer = second->Clip(Half(50, ReplyMode::kGradient));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_FALSE(second->shared());
  EXPECT_EQ(second->refusal().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Count(*second, 0.5f), 50);
  EXPECT_THAT(warnings, testing::ElementsAre(HasSubstr("--max-regions")));
}

TEST_F(Sharing, GivesTheServersErrors) {
  Serve();
  Client client(address_);
  auto gradient = Ones(client, 10);
  static_cast<float*>(gradient->tensors()[0].data)[3] = HUGE_VALF;
  for (const ReplyMode mode : kModes) {
    ClipOptions options = Half(10, mode);
    options.nonfinite = NonfinitePolicy::kError;
    const absl::Status status = gradient->Clip(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.message(), HasSubstr("w[3]"));
    EXPECT_EQ(Count(*gradient, 1.0f), 9);
    options.norm.norm_type = -1;
    EXPECT_EQ(gradient->Clip(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace gradclip
