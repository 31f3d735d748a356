// What --backend chooses, and whole calls on what it chose: on the emulated GPUs.
#include "server/compute/compute.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "emulated_cuda.h"
#include "server/memory/arena.h"
#include "server/session/session.h"
#include "tests/server/session/gradients.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> NamesOf(const std::vector<BackendChoice>& choices) {
  std::vector<std::string> names;
  for (const BackendChoice& choice : choices) names.push_back(choice.name);
  return names;
}

class ComputeTest : public testing::Test {
 protected:
  ~ComputeTest() override {
    compute_ = nullptr;
    emulated_cuda::Reset();
  }

  static void Machine(std::vector<emulated_cuda::Device> devices, int driver = 13000) {
    emulated_cuda::Options options;
    options.devices = std::move(devices);
    options.driver_version = driver;
    emulated_cuda::Reset(options);
  }

  absl::Status Choose(std::string_view name, CudaOptions options = {}) {
    compute_ = nullptr;
    absl::StatusOr<std::unique_ptr<Compute>> made = Compute::Make(name, std::move(options));
    if (!made.ok()) return made.status();
    compute_ = *std::move(made);
    return absl::OkStatus();
  }

  std::unique_ptr<Compute> compute_;
};

using ComputeChoice = ComputeTest;

TEST_F(ComputeChoice, AutoTakesTheGpusWhereThereAreAny) {
  Machine({{}, {}});
  ASSERT_EQ(Choose("auto"), absl::OkStatus());
  EXPECT_EQ(compute_->name(), "cuda/0");
  EXPECT_THAT(compute_->names(), ElementsAre("cuda/0", "cuda/1", compute_->host().name()));
  EXPECT_THAT(compute_->why_no_devices(), IsEmpty());
  const std::vector<std::string> names = NamesOf(compute_->Choices());
  ASSERT_GE(names.size(), 3u);
  EXPECT_EQ(names[0], "cuda/0");
  EXPECT_EQ(names[1], "cuda/1");
  EXPECT_EQ(names[2], compute_->host().name());
}

TEST_F(ComputeChoice, AutoTakesTheHostAndSaysWhyWhereThereAreNone) {
  Machine({{}}, /*driver=*/0);
  ASSERT_EQ(Choose("auto"), absl::OkStatus());
  EXPECT_EQ(compute_->devices(), nullptr);
  EXPECT_EQ(compute_->name(), compute_->host().name());
  EXPECT_THAT(compute_->why_no_devices(), HasSubstr("no NVIDIA driver"));
  const std::vector<BackendChoice> choices = compute_->Choices();
  EXPECT_EQ(choices.front().name, compute_->name());
  EXPECT_EQ(choices[1].name, "cuda");
  EXPECT_FALSE(choices[1].usable);
}

TEST_F(ComputeChoice, ANameForcesOne) {
  Machine({{}, {}});
  ASSERT_EQ(Choose("cuda/1"), absl::OkStatus());
  EXPECT_THAT(compute_->names(), ElementsAre("cuda/1", compute_->host().name()));
  ASSERT_EQ(Choose("cuda"), absl::OkStatus());
  EXPECT_THAT(compute_->names(), ElementsAre("cuda/0", "cuda/1", compute_->host().name()));
  ASSERT_EQ(Choose("cuda", {.devices = {1}}), absl::OkStatus());
  EXPECT_THAT(compute_->names(), ElementsAre("cuda/1", compute_->host().name()));
  for (const std::string name : {"cpu", "cpu/baseline"}) {
    ASSERT_EQ(Choose(name), absl::OkStatus());
    EXPECT_EQ(compute_->devices(), nullptr);
    EXPECT_THAT(compute_->why_no_devices(), IsEmpty());
    EXPECT_EQ(compute_->Choices().front().name, compute_->host().name());
  }
}

TEST_F(ComputeChoice, RefusesWhatIsNotThereAndListsWhatIs) {
  Machine({{.name = "Old", .major = 6}, {}});
  for (const std::string name : {"gpu", "cuda/", "cuda/x", "cuda/-1", "cudax", "cpu/mmx", ""}) {
    const absl::Status status = Choose(name);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("unknown backend \"" + name + "\""), HasSubstr("auto, cpu, cuda/0"),
                      HasSubstr("cuda/1"), HasSubstr("cpu/baseline")));
  }
  for (const std::string name : {"cuda/0", "cuda/2"}) {
    const absl::Status status = Choose(name);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name + " cannot be used: "));
  }
  const absl::Status both = Choose("cuda/1", {.devices = {0}});
  EXPECT_EQ(both.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(both.message()), HasSubstr("--cuda-devices"));
  // Who names devices wants them.
  EXPECT_EQ(Choose("auto", {.devices = {0}}).code(), absl::StatusCode::kFailedPrecondition);
  Machine({});
  EXPECT_EQ(Choose("cuda").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ComputeChoice, SaysWhyADeviceIsLeftOut) {
  Machine({{.memory = size_t{4} << 20}, {}});
  ASSERT_EQ(Choose("auto"), absl::OkStatus());
  EXPECT_EQ(compute_->name(), "cuda/1");
  ASSERT_EQ(compute_->left_out().size(), 1u);
  EXPECT_EQ(compute_->left_out()[0].first, "cuda/0");
  EXPECT_THAT(compute_->left_out()[0].second, HasSubstr("--cuda-memory-budget"));
  for (const BackendChoice& choice : compute_->Choices()) {
    if (choice.name != "cuda/0") continue;
    EXPECT_FALSE(choice.usable);
    EXPECT_EQ(choice.detail, compute_->left_out()[0].second);
  }
}

// Calls of a server that has chosen.
class CallsOnGpus : public ComputeTest {
 protected:
  struct Answer {
    absl::Status status;
    std::string result;  // without the backend's name
    std::string backend;
    std::string clipped;
  };

  Answer Clip(const Case& gradient, Devices* devices, bool host_goes_on = true) {
    Session session({.backend = *host_,
                     .arenas = arenas_,
                     .max_call_bytes = uint64_t{1} << 30,
                     .devices = devices,
                     .host_on_device_error = host_goes_on});
    Answer answer;
    answer.status = session.Start(v1::ClipGradNormStart(gradient.start));
    std::string_view bytes = gradient.bytes;
    while (answer.status.ok() && !bytes.empty()) {
      const std::string_view message = bytes.substr(0, 700'001);
      answer.status = session.Data(AsBytes(message));
      bytes.remove_prefix(message.size());
    }
    if (answer.status.ok()) answer.status = session.HalfClose();
    if (!answer.status.ok()) return answer;
    v1::ClipResult result = session.result();
    answer.backend = result.norm().backend();
    result.mutable_norm()->clear_backend();
    answer.result = result.SerializeAsString();
    while (result.gradient_follows() && session.has_segment()) {
      const absl::StatusOr<ReplySegment> segment = session.NextSegment();
      answer.status = segment.status();
      if (!segment.ok()) break;
      answer.clipped.append(reinterpret_cast<const char*>(segment->bytes.data()),
                            segment->bytes.size());
    }
    return answer;
  }

  static void ExpectSame(const Answer& answer, const Answer& host) {
    ASSERT_EQ(answer.status, absl::OkStatus());
    EXPECT_EQ(answer.result, host.result);
    EXPECT_TRUE(answer.clipped == host.clipped);
  }

  static Case Gradient(v1::ReplyMode reply, uint64_t seed = 1, bool per_tensor = false,
                       double norm_type = 2) {
    Case gradient = MakeCase({{4097}, {3, 5}, {0}, {700, 1000}, {}, {9001}, {300'000}}, seed,
                             norm_type, per_tensor, /*nonfinite=*/false);
    gradient.start.set_reply(reply);
    gradient.start.set_max_norm(1);
    return gradient;
  }

  const std::unique_ptr<Backend> host_ = *MakeBackend("auto");
  ArenaPool arenas_;
};

TEST_F(CallsOnGpus, GiveTheHostsAnswers) {
  Machine({{}});
  ASSERT_EQ(Choose("cuda"), absl::OkStatus());
  for (const emulated_cuda::Mode mode :
       {emulated_cuda::Mode::kLazy, emulated_cuda::Mode::kEager, emulated_cuda::Mode::kRandom}) {
    compute_ = nullptr;
    emulated_cuda::Options options;
    options.mode = mode;
    emulated_cuda::Reset(options);
    ASSERT_EQ(Choose("cuda"), absl::OkStatus());
    uint64_t seed = 0;
    for (const double norm_type : {1.0, 2.0, static_cast<double>(INFINITY)}) {
      for (const bool per_tensor : {false, true}) {
        for (const v1::ReplyMode reply :
             {v1::REPLY_GRADIENT, v1::REPLY_GRADIENT_IF_CHANGED, v1::REPLY_COEFFICIENT}) {
          const Case gradient = Gradient(reply, ++seed, per_tensor, norm_type);
          const Answer answer = Clip(gradient, compute_->devices());
          ExpectSame(answer, Clip(gradient, nullptr));
          EXPECT_EQ(answer.backend, "cuda/0");
        }
      }
    }
  }
}

// Every call of the CUDA runtime fails in turn: the host's answer, or the right status, and nothing
// left behind.
TEST_F(CallsOnGpus, EndWithTheHostsAnswerOrTheRightStatusWhateverFails) {
  for (const v1::ReplyMode reply : {v1::REPLY_GRADIENT, v1::REPLY_COEFFICIENT}) {
    const Case gradient = Gradient(reply);
    const Answer host = Clip(gradient, nullptr);
    for (const bool host_goes_on : {true, false}) {
      for (const cudaError_t error : {cudaErrorLaunchFailure, cudaErrorMemoryAllocation}) {
        const bool sticky = error != cudaErrorMemoryAllocation;
        int answered = 0;
        for (size_t call = 1;; ++call) {
          Machine({{}});
          std::vector<std::string> failed;
          ASSERT_EQ(Choose("cuda", {.on_failure =
                                        [&failed](const std::string& device, const absl::Status&) {
                                          failed.push_back(device);
                                        }}),
                    absl::OkStatus());
          emulated_cuda::ForgetCalls();
          emulated_cuda::FailAt(call, error, sticky);
          const Answer answer = Clip(gradient, compute_->devices(), host_goes_on);
          const bool over = call > emulated_cuda::CallCount();
          emulated_cuda::ClearFailures();
          SCOPED_TRACE(testing::Message() << "call " << call << ", " << answer.status);
          if (answer.status.ok()) {
            ++answered;
            ExpectSame(answer, host);
          } else {
            // Only what was on the device alone may be lost where the host may go on.
            EXPECT_TRUE(!host_goes_on || reply == v1::REPLY_GRADIENT);
            EXPECT_EQ(answer.status.code(), sticky || host_goes_on
                                                ? absl::StatusCode::kUnavailable
                                                : absl::StatusCode::kResourceExhausted);
          }
          if (!over && sticky) {
            EXPECT_THAT(failed, ElementsAre("cuda/0"));
            const std::vector<BackendChoice> choices = compute_->Choices();
            EXPECT_EQ(choices.front().name, compute_->host().name());
            // What comes later goes to the host, or is told.
            const Answer later = Clip(gradient, compute_->devices(), host_goes_on);
            if (host_goes_on) {
              ExpectSame(later, host);
            } else {
              EXPECT_EQ(later.status.code(), absl::StatusCode::kUnavailable);
            }
          } else {
            compute_ = nullptr;
            EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
          }
          if (over) break;
        }
        EXPECT_TRUE(!host_goes_on || answered > 5);
      }
    }
  }
}

TEST_F(CallsOnGpus, RunSeveralAtOnceOnSeveralDevices) {
  Machine({{}, {}});
  ASSERT_EQ(Choose("auto"), absl::OkStatus());
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([this, seed] {
      const Case gradient = Gradient(v1::REPLY_GRADIENT, seed);
      const Answer host = Clip(gradient, nullptr);
      for (int i = 0; i < 3; ++i) {
        const Answer answer = Clip(gradient, compute_->devices());
        ExpectSame(answer, host);
        EXPECT_THAT(answer.backend, HasSubstr("cuda/"));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  compute_ = nullptr;
  EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
}

TEST_F(CallsOnGpus, GoToTheHostWhereTheDevicesAreBusy) {
  Machine({{}});
  ASSERT_EQ(Choose("cuda"), absl::OkStatus());
  const Case gradient = Gradient(v1::REPLY_COEFFICIENT);
  const Answer host = Clip(gradient, nullptr);
  std::vector<std::unique_ptr<DeviceQueue>> others;
  while (std::unique_ptr<DeviceQueue> queue = *compute_->devices()->Open(1, false)) {
    others.push_back(std::move(queue));
  }
  // That is no error of the device.
  for (const bool host_goes_on : {true, false}) {
    const Answer answer = Clip(gradient, compute_->devices(), host_goes_on);
    ExpectSame(answer, host);
    EXPECT_EQ(answer.backend, host.backend);
  }
}

TEST_F(CallsOnGpus, GoToTheHostWhereTheDevicesMemoryIsTaken) {
  Machine({{}});
  ASSERT_EQ(Choose("cuda", {.memory_bytes = size_t{9} << 20}), absl::OkStatus());
  Case gradient = MakeCase({{2'000'000}, {2'000'000}}, 1, 2, false, false);
  gradient.start.set_reply(v1::REPLY_GRADIENT);
  const Answer host = Clip(gradient, nullptr);
  const Answer answer = Clip(gradient, compute_->devices());
  ExpectSame(answer, host);
  EXPECT_EQ(answer.backend, host.backend);
  const Answer refused = Clip(gradient, compute_->devices(), /*host_goes_on=*/false);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("--cuda-memory-budget"));
}

}  // namespace
}  // namespace gradclip
