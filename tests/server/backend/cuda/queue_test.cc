// A call's queue of work on the emulated GPUs: what it finds, what it keeps, and what becomes of it
// when CUDA fails, at every call in turn.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "emulated_cuda.h"
#include "server/backend/cuda/cuda_device.h"
#include "server/backend/cuda/cuda_devices.h"
#include "server/norm/gradient_norm.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> NamesOf(const Devices& devices) {
  std::vector<std::string> names;
  for (const Devices::State& device : devices.states()) names.push_back(device.name);
  return names;
}

class CudaQueueTest : public testing::Test {
 protected:
  ~CudaQueueTest() override {
    devices_ = nullptr;
    emulated_cuda::Reset();
  }

  static void Machine(size_t devices, size_t memory = size_t{256} << 20) {
    emulated_cuda::Options options;
    options.devices.assign(devices, emulated_cuda::Device{.memory = memory});
    emulated_cuda::Reset(options);
  }

  absl::Status OpenDevices(CudaOptions options = {}) {
    options.on_failure = [this](const std::string& device, const absl::Status&) {
      failed_.push_back(device);
    };
    absl::StatusOr<std::unique_ptr<Devices>> devices = OpenCudaDevices(options);
    if (!devices.ok()) return devices.status();
    devices_ = *std::move(devices);
    return absl::OkStatus();
  }

  static std::string HostNorm(const Bytes& gradient) {
    const std::unique_ptr<Backend> host = *MakeBackend("cpu/baseline");
    GradientNorm norm(*host, 2, false);
    norm.BeginTensor(DType::kFloat32, true);
    norm.Add(gradient.data(), gradient.size() / 4);
    norm.EndTensor();
    return norm.total().Serialize();
  }

  // Slots full of one F32 tensor, measured, and, where they are kept, halved and fetched. Puts
  // what is found into norm_ and what is fetched into fetched_.
  absl::Status Run(const Bytes& gradient, bool keeps) {
    norm_ = NormPartial(2);
    fetched_.clear();
    const size_t pieces = gradient.size() / slot_bytes_;
    absl::StatusOr<std::unique_ptr<DeviceQueue>> opened = devices_->Open(pieces, keeps);
    if (!opened.ok()) return opened.status();
    DeviceQueue& queue = **opened;
    ran_on_ = queue.name();
    const auto take = [&](size_t slot) {
      const absl::StatusOr<DeviceFound> found = queue.Await(slot);
      if (found.ok()) norm_.AddTally(*found->tally);
      return found.status();
    };
    for (size_t piece = 0; piece < pieces; ++piece) {
      const size_t slot = piece % queue.slots();
      if (piece >= queue.slots()) {
        if (absl::Status taken = take(slot); !taken.ok()) return taken;
      }
      std::memcpy(queue.slot(slot), gradient.data() + piece * slot_bytes_, slot_bytes_);
      const DeviceRun run = {.elements = slot_bytes_ / 4};
      if (absl::Status measured =
              queue.Measure(slot, slot_bytes_, {&run, 1}, NormKind::kSquares, /*per_block=*/false);
          !measured.ok()) {
        return measured;
      }
    }
    for (size_t piece = pieces - std::min(pieces, queue.slots()); piece < pieces; ++piece) {
      if (absl::Status taken = take(piece % queue.slots()); !taken.ok()) return taken;
    }
    if (!keeps) return absl::OkStatus();
    for (size_t piece = 0; piece < pieces; ++piece) {
      const size_t slot = piece % queue.slots();
      if (absl::Status scaled = queue.Scale(piece, 0.5, false); !scaled.ok()) return scaled;
      if (absl::Status fetched = queue.Fetch(piece, slot); !fetched.ok()) return fetched;
      if (absl::Status there = queue.Await(slot).status(); !there.ok()) return there;
      fetched_.insert(fetched_.end(), queue.slot(slot), queue.slot(slot) + slot_bytes_);
    }
    return absl::OkStatus();
  }

  static Bytes Halved(Bytes gradient) {
    (*MakeBackend("cpu/baseline"))
        ->Scale(DType::kFloat32, gradient.data(), gradient.size() / 4, 0.5);
    return gradient;
  }

  Bytes Gradient(size_t slots) const {
    return RandomElements(DType::kFloat32, slots * slot_bytes_ / 4, slots);
  }

  size_t slot_bytes_ = DeviceQueue::kSlotBytes;  // of F32, as full as slots are made
  std::unique_ptr<Devices> devices_;
  std::vector<std::string> failed_;
  NormPartial norm_{2};
  Bytes fetched_;
  std::string ran_on_;
};

TEST_F(CudaQueueTest, MeasuresScalesAndFetchesSlotAfterSlot) {
  Machine(1);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  for (const size_t slots : {1, 3, 7}) {
    const Bytes gradient = Gradient(slots);
    ASSERT_EQ(Run(gradient, true), absl::OkStatus());
    EXPECT_EQ(norm_.Serialize(), HostNorm(gradient));
    EXPECT_TRUE(fetched_ == Halved(gradient));
    ASSERT_EQ(Run(gradient, false), absl::OkStatus());
    EXPECT_EQ(norm_.Serialize(), HostNorm(gradient));
  }
}

TEST_F(CudaQueueTest, LeavesNothingBehind) {
  Machine(2);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  ASSERT_EQ(Run(Gradient(3), true), absl::OkStatus());
  devices_ = nullptr;
  EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
}

TEST_F(CudaQueueTest, AQueueThatEndsInTheMiddleLeavesTheNextOneItsOwn) {
  Machine(1);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  const Bytes gradient = Gradient(1);
  {
    const std::unique_ptr<DeviceQueue> queue = *devices_->Open(1, false);
    const DeviceRun run = {.elements = slot_bytes_ / 4};
    ASSERT_EQ(queue->Measure(0, slot_bytes_, {&run, 1}, NormKind::kSquares, false),
              absl::OkStatus());
  }
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
  ASSERT_EQ(Run(gradient, true), absl::OkStatus());
  EXPECT_EQ(norm_.Serialize(), HostNorm(gradient));
}

// Every call of the CUDA runtime fails in turn, for good, for lack of memory, and later than it was
// asked for.
TEST_F(CudaQueueTest, EveryFailureIsToldAndTakesTheDeviceOutOfUse) {
  struct Failure {
    cudaError_t error;
    bool later;
  };
  slot_bytes_ = size_t{64} << 10;
  const Bytes gradient = Gradient(4);
  for (const Failure failure :
       {Failure{cudaErrorIllegalAddress, false}, Failure{cudaErrorMemoryAllocation, false},
        Failure{cudaErrorECCUncorrectable, true}}) {
    int told = 0;
    for (size_t call = 1;; ++call) {
      Machine(1);
      failed_.clear();
      ASSERT_EQ(OpenDevices(), absl::OkStatus());
      emulated_cuda::ForgetCalls();
      const bool out_of_memory = failure.error == cudaErrorMemoryAllocation;
      if (failure.later) {
        emulated_cuda::FailWorkAt(call, failure.error, true);
      } else {
        emulated_cuda::FailAt(call, failure.error, !out_of_memory);
      }
      const absl::Status status = Run(gradient, true);
      const size_t calls = emulated_cuda::CallCount();
      emulated_cuda::ClearFailures();
      if (status.ok()) {
        // What failed came while the queue ended, or after it.
        EXPECT_TRUE(fetched_ == Halved(gradient));
        EXPECT_EQ(norm_.Serialize(), HostNorm(gradient));
      } else if (out_of_memory) {
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
        EXPECT_THAT(failed_, IsEmpty());
        // Only this call was affected.
        EXPECT_EQ(Run(gradient, true), absl::OkStatus());
        EXPECT_TRUE(fetched_ == Halved(gradient));
        devices_ = nullptr;
        EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live()) << "failed call " << call;
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr("cuda/0: "));
        EXPECT_THAT(failed_, ElementsAre("cuda/0"));
        EXPECT_EQ(Run(gradient, true), status);
      }
      told += status.ok() ? 0 : 1;
      devices_ = nullptr;
      if (call > calls) break;
    }
    EXPECT_GT(told, 20);
  }
}

TEST_F(CudaQueueTest, OtherDevicesTakeOverFromOneThatHasFailed) {
  Machine(2);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  const Bytes gradient = Gradient(2);
  emulated_cuda::FailCall("cudaEventQuery", 1, cudaErrorLaunchFailure, true);
  EXPECT_EQ(Run(gradient, true).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed_, ElementsAre(ran_on_));
  EXPECT_FALSE(devices_->states()[0].usable);
  EXPECT_TRUE(devices_->states()[1].usable);
  const std::string first = ran_on_;
  ASSERT_EQ(Run(gradient, true), absl::OkStatus());
  EXPECT_NE(ran_on_, first);
  EXPECT_TRUE(fetched_ == Halved(gradient));
}

TEST_F(CudaQueueTest, TheDeviceWithLessToDoIsTaken) {
  Machine(3);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  std::vector<std::unique_ptr<DeviceQueue>> queues;
  std::vector<std::string> names;
  for (int i = 0; i < 6; ++i) {
    queues.push_back(*devices_->Open(1, false));
    names.emplace_back(queues.back()->name());
  }
  EXPECT_THAT(names, ElementsAre("cuda/0", "cuda/1", "cuda/2", "cuda/0", "cuda/1", "cuda/2"));
  queues[4] = nullptr;
  EXPECT_EQ((*devices_->Open(1, false))->name(), "cuda/1");
}

TEST_F(CudaQueueTest, KeepsNoMoreThanItsMemoryBudget) {
  Machine(1);
  const uint64_t budget = 5 * sizeof(DevicePiece) + 1000;
  ASSERT_EQ(OpenDevices({.memory_bytes = budget}), absl::OkStatus());
  const absl::Status status = devices_->Open(6, true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cuda/0: "), HasSubstr("--cuda-memory-budget")));
  absl::StatusOr<std::unique_ptr<DeviceQueue>> all = devices_->Open(5, true);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(devices_->Open(1, true).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(devices_->states()[0].memory_bytes, 5 * sizeof(DevicePiece));
  EXPECT_EQ(devices_->states()[0].used_bytes, 5 * sizeof(DevicePiece));
  EXPECT_EQ(devices_->states()[0].queues, 1u);
  all->reset();
  EXPECT_EQ(devices_->states()[0].used_bytes, 0u);
  EXPECT_EQ(devices_->states()[0].queues, 0u);
  EXPECT_TRUE(devices_->Open(5, true).ok());
  EXPECT_LE(emulated_cuda::CountLive().device_bytes, budget);
}

TEST_F(CudaQueueTest, TakesAShareOfTheFreeMemoryByDefault) {
  Machine(1, size_t{64} << 20);
  ASSERT_EQ(OpenDevices({.memory_share = 0.5}), absl::OkStatus());
  EXPECT_TRUE(devices_->Open((size_t{32} << 20) / sizeof(DevicePiece), true).ok());
  EXPECT_FALSE(devices_->Open((size_t{32} << 20) / sizeof(DevicePiece) + 1, true).ok());
}

TEST_F(CudaQueueTest, GivesNoMoreQueuesThanThereIsPinnedMemoryFor) {
  Machine(1);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  std::vector<std::unique_ptr<DeviceQueue>> queues;
  for (size_t i = 0; i < CudaDevice::kMostPipelines; ++i) {
    queues.push_back(*devices_->Open(1, false));
  }
  EXPECT_EQ(*devices_->Open(1, false), nullptr);
  queues.pop_back();
  EXPECT_NE(*devices_->Open(1, false), nullptr);
}

class CudaChoice : public CudaQueueTest {};

TEST_F(CudaChoice, SaysWhyThereIsNoGpu) {
  emulated_cuda::Options options;
  options.driver_version = 0;
  emulated_cuda::Reset(options);
  EXPECT_THAT(ListCudaDevices().front().detail, HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(std::string(OpenDevices().message()), HasSubstr("no NVIDIA driver"));
  options.driver_version = 12040;
  emulated_cuda::Reset(options);
  EXPECT_THAT(ListCudaDevices().front().detail,
              AllOf(HasSubstr("too old"), HasSubstr("CUDA 12.4"), HasSubstr("CUDA 13.")));
  Machine(0);
  EXPECT_THAT(ListCudaDevices().front().detail, HasSubstr("no GPU"));
  EXPECT_EQ(OpenDevices().code(), absl::StatusCode::kFailedPrecondition);
  Machine(1);
  emulated_cuda::FailCall("cudaGetDeviceCount", 1, cudaErrorUnknown);
  EXPECT_THAT(ListCudaDevices().front().detail, HasSubstr("cudaErrorUnknown"));
}

TEST_F(CudaChoice, LeavesOutDevicesThatItHasNoCodeFor) {
  emulated_cuda::Options options;
  options.devices = {{.name = "Old", .major = 6, .minor = 1}, {.name = "New"}};
  emulated_cuda::Reset(options);
  const std::vector<BackendChoice> choices = ListCudaDevices();
  ASSERT_EQ(choices.size(), 2u);
  EXPECT_FALSE(choices[0].usable);
  EXPECT_THAT(choices[0].detail, AllOf(HasSubstr("Old"), HasSubstr("6.1"), HasSubstr("7.5")));
  EXPECT_TRUE(choices[1].usable);
  EXPECT_THAT(choices[1].detail, AllOf(HasSubstr("New"), HasSubstr("9.0"), HasSubstr("GiB")));
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  EXPECT_THAT(NamesOf(*devices_), ElementsAre("cuda/1"));
  const absl::Status named = OpenDevices({.devices = {1, 0}});
  EXPECT_EQ(named.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(named.message()), HasSubstr("cuda/0 cannot be used: Old"));
}

TEST_F(CudaChoice, LeavesOutDevicesWhoseKernelsCannotBeLoaded) {
  emulated_cuda::Options options;
  options.devices = {{.has_kernel_image = false}, {}};
  emulated_cuda::Reset(options);
  ASSERT_EQ(OpenDevices(), absl::OkStatus());
  EXPECT_THAT(NamesOf(*devices_), ElementsAre("cuda/1"));
  EXPECT_THAT(std::string(OpenDevices({.devices = {0}}).message()),
              HasSubstr("cudaErrorNoKernelImageForDevice"));
}

TEST_F(CudaChoice, RefusesANumberThatNoDeviceHas) {
  Machine(2);
  EXPECT_THAT(std::string(OpenDevices({.devices = {2}}).message()),
              HasSubstr("cuda/2 cannot be used: there are 2 devices, numbered from 0"));
}

}  // namespace
}  // namespace gradclip
