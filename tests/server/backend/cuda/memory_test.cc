// Memory of another process on the emulated GPUs: opened by its handle, measured and scaled where
// it is, and what becomes of that when CUDA fails, at every call in turn. That the other process is
// this one, the emulated runtime allows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulated_cuda.h"
#include "server/backend/cuda/cuda_devices.h"
#include "server/norm/gradient_norm.h"
#include "server/norm/pieces.h"
#include "tests/server/backend/cuda/device_buffer.h"
#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

class CudaMemoryTest : public testing::Test {
 protected:
  ~CudaMemoryTest() override {
    memory_ = nullptr;
    devices_ = nullptr;
    buffer_ = nullptr;
    emulated_cuda::Reset();
  }

  // A machine of one's own, with `bytes` in an allocation of a GPU, the last one.
  void Machine(size_t devices, const Bytes& bytes, CudaOptions options = {}) {
    memory_ = nullptr;
    devices_ = nullptr;
    buffer_ = nullptr;
    emulated_cuda::Options machine;
    machine.devices.assign(devices, emulated_cuda::Device());
    emulated_cuda::Reset(machine);
    failed_.clear();
    options.on_failure = [this](const std::string& device, const absl::Status&) {
      failed_.push_back(device);
    };
    const int last = static_cast<int>(devices) - 1;
    MustSucceed(cudaSetDevice(last));
    buffer_ = std::make_unique<DeviceBuffer>(bytes.data(), bytes.size());
    exported_ = {.offset = 0, .length = bytes.size()};
    cudaIpcMemHandle_t handle;
    MustSucceed(cudaIpcGetMemHandle(&handle, buffer_->device()));
    std::memcpy(exported_.allocation.data(), &handle, sizeof handle);
    cudaDeviceProp properties;
    MustSucceed(cudaGetDeviceProperties(&properties, last));
    std::memcpy(exported_.device.data(), &properties.uuid, sizeof properties.uuid);
    MustSucceed(cudaSetDevice(0));
    absl::StatusOr<std::unique_ptr<Devices>> opened = OpenCudaDevices(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    devices_ = *std::move(opened);
  }

  absl::Status OpenMemory() {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> opened = devices_->OpenMemory(exported_);
    if (!opened.ok()) return opened.status();
    memory_ = *std::move(opened);
    return absl::OkStatus();
  }

  Bytes InMemory() {
    const std::byte* const bytes = buffer_->Get();
    return Bytes(bytes, bytes + buffer_->size());
  }

  // F32 elements from byte `at` of the memory on.
  DeviceRun Elements(uint64_t at, uint64_t elements) const {
    return {.address = memory_->address() + at, .elements = elements};
  }

  // Of F32 elements, measured by the host.
  static std::string HostNorm(const Bytes& elements) {
    const std::unique_ptr<Backend> host = *MakeBackend("cpu/baseline");
    const Piece piece = {DType::kFloat32, true, elements.data(), elements.size() / 4};
    return MeasureTensors(*host, 2, false, 1, {&piece, 1}).sum.Serialize();
  }

  // Opens the memory, measures all of it, halves it, and brings it to the host.
  absl::Status Run() {
    if (absl::Status opened = OpenMemory(); !opened.ok()) return opened;
    const DeviceRun all = Elements(0, exported_.length / 4);
    const auto take = [&](const DeviceFound& found) {
      NormPartial norm(2);
      norm.AddTally(*found.tally);
      norm_ = norm.Serialize();
    };
    absl::Status status = memory_->Measure({&all, 1}, NormKind::kSquares, false, take);
    if (status.ok()) status = memory_->Scale({&all, 1}, 0.5, false);
    fetched_.assign(exported_.length, std::byte{0});
    if (status.ok()) status = memory_->Fetch(memory_->address(), fetched_);
    memory_ = nullptr;
    return status;
  }

  static Bytes Halved(Bytes gradient) {
    (*MakeBackend("cpu/baseline"))
        ->Scale(DType::kFloat32, gradient.data(), gradient.size() / 4, 0.5);
    return gradient;
  }

  std::unique_ptr<DeviceBuffer> buffer_;
  ExportedMemory exported_;
  std::unique_ptr<Devices> devices_;
  std::vector<std::string> failed_;
  std::unique_ptr<DeviceMemory> memory_;
  std::string norm_;
  Bytes fetched_;
};

TEST_F(CudaMemoryTest, MeasuresAndScalesWhereTheMemoryIs) {
  const Bytes gradient = RandomElements(DType::kFloat32, 2'000'001, 1);
  Machine(2, gradient);
  ASSERT_EQ(Run(), absl::OkStatus());
  EXPECT_EQ(norm_, HostNorm(gradient));
  EXPECT_TRUE(fetched_ == Halved(gradient));
  EXPECT_TRUE(InMemory() == Halved(gradient));
  ASSERT_EQ(OpenMemory(), absl::OkStatus());
  EXPECT_EQ(memory_->device(), "cuda/1");
  // Calls count as load while they are at work, and no longer.
  EXPECT_EQ(devices_->states()[1].queues, 0u);
}

TEST_F(CudaMemoryTest, KeepsToTheRunsAndAssignsZero) {
  const Bytes gradient = RandomElements(DType::kFloat32, 20'000, 2);
  Machine(1, gradient);
  exported_.offset = 400;
  exported_.length = 40'000;
  ASSERT_EQ(OpenMemory(), absl::OkStatus());
  const DeviceRun runs[] = {Elements(4, 100), Elements(4000, 5000)};
  ASSERT_EQ(memory_->Scale(runs, 1, true), absl::OkStatus());
  Bytes expected(gradient.begin(), gradient.begin() + 404);
  expected.resize(804);
  expected.insert(expected.end(), gradient.begin() + 804, gradient.begin() + 4400);
  expected.resize(24'400);
  expected.insert(expected.end(), gradient.begin() + 24'400, gradient.end());
  EXPECT_TRUE(InMemory() == expected);
  std::vector<DeviceBlock> blocks;
  ASSERT_EQ(memory_->Measure(runs, NormKind::kLargest, true,
                             [&](const DeviceFound& found) {
                               blocks.assign(found.blocks.begin(), found.blocks.end());
                             }),
            absl::OkStatus());
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[0].zeros, 100u);
  EXPECT_EQ(blocks[1].zeros, kBlockElements);
  EXPECT_EQ(blocks[2].zeros, 5000 - kBlockElements);
}

TEST_F(CudaMemoryTest, FetchesMoreThanASlotHolds) {
  const Bytes gradient = RandomElements(DType::kFloat32, DeviceQueue::kSlotBytes / 4 * 2 + 5, 3);
  Machine(1, gradient);
  ASSERT_EQ(OpenMemory(), absl::OkStatus());
  Bytes part(gradient.size() - 12);
  ASSERT_EQ(memory_->Fetch(memory_->address() + 12, part), absl::OkStatus());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), gradient.begin() + 12));
}

TEST_F(CudaMemoryTest, IsAtOneAddressHoweverOftenItIsOpen) {
  Machine(1, RandomElements(DType::kFloat32, 1000, 4));
  ASSERT_EQ(OpenMemory(), absl::OkStatus());
  exported_.offset = 100;
  exported_.length = 8;
  const std::unique_ptr<DeviceMemory> again = *devices_->OpenMemory(exported_);
  EXPECT_EQ(again->address(), memory_->address() + 100);
  memory_ = nullptr;
  EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 1u);
  Bytes bytes(8);
  EXPECT_EQ(again->Fetch(again->address(), bytes), absl::OkStatus());
}

TEST_F(CudaMemoryTest, LeavesNothingBehind) {
  Machine(1, RandomElements(DType::kFloat32, 1000, 5));
  ASSERT_EQ(Run(), absl::OkStatus());
  devices_ = nullptr;
  buffer_ = nullptr;
  EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
}

TEST_F(CudaMemoryTest, RefusesWhatIsNotAllInTheAllocation) {
  Machine(1, RandomElements(DType::kFloat32, 1000, 6));
  const size_t bytes = buffer_->size() + 1;  // as it was allocated
  struct Window {
    uint64_t offset;
    uint64_t length;
  };
  for (const Window& window :
       {Window{0, 0}, Window{0, bytes + 1}, Window{1, bytes}, Window{bytes, 1},
        Window{~uint64_t{0}, 8}, Window{8, ~uint64_t{0}}, Window{bytes + 8, 0}}) {
    exported_.offset = window.offset;
    exported_.length = window.length;
    const absl::Status status = OpenMemory();
    EXPECT_EQ(status.code(), kInvalid);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(bytes)));
  }
  EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
  exported_.offset = bytes - 1;
  exported_.length = 1;
  EXPECT_EQ(OpenMemory(), absl::OkStatus());
  EXPECT_THAT(failed_, IsEmpty());
}

// Whatever a client sends for a handle: it is refused, and the device stays in use.
TEST_F(CudaMemoryTest, RefusesHandlesThatCudaCannotOpen) {
  const Bytes gradient = RandomElements(DType::kFloat32, 1000, 7);
  Machine(1, gradient);
  const ExportedMemory right = exported_;
  exported_.allocation.fill(std::byte{0xee});
  const absl::Status status = OpenMemory();
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cuda/0: "), HasSubstr("cudaIpcOpenMemHandle")));
  for (const char* call :
       {"cudaIpcOpenMemHandle", "cudaGetDriverEntryPointByVersion", "cuMemGetAddressRange"}) {
    for (const cudaError_t error :
         {cudaErrorInvalidValue, cudaErrorMapBufferObjectFailed, cudaErrorNotSupported}) {
      exported_ = right;
      emulated_cuda::ForgetCalls();
      emulated_cuda::FailCall(call, 1, error);
      EXPECT_EQ(OpenMemory().code(), kInvalid) << call;
      emulated_cuda::ClearFailures();
      EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
    }
  }
  EXPECT_THAT(failed_, IsEmpty());
  EXPECT_EQ(Run(), absl::OkStatus());
}

TEST_F(CudaMemoryTest, RefusesAHandleOfAnotherGpuThanTheUuids) {
  Machine(2, RandomElements(DType::kFloat32, 1000, 7));
  exported_.device.back() = std::byte{0};  // of cuda/0; the memory is cuda/1's
  const absl::Status status = OpenMemory();
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("another GPU than the UUID, which is cuda/0's"));
  EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
}

TEST_F(CudaMemoryTest, ACloseThatFailsLeavesTheGpuInUse) {
  Machine(1, RandomElements(DType::kFloat32, 1000, 7));
  ASSERT_EQ(OpenMemory(), absl::OkStatus());
  emulated_cuda::ForgetCalls();
  emulated_cuda::FailCall("cudaIpcCloseMemHandle", 1, cudaErrorInvalidValue);
  memory_ = nullptr;
  emulated_cuda::ClearFailures();
  EXPECT_THAT(failed_, IsEmpty());
  EXPECT_EQ(Run(), absl::OkStatus());
}

TEST_F(CudaMemoryTest, NamesTheGpusWhereTheMemoryIsOfAnother) {
  Machine(3, RandomElements(DType::kFloat32, 10, 8), {.devices = {0, 1}});
  const absl::Status status = OpenMemory();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  // The emulated devices' UUIDs are text, with the number at the end.
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("of GPU-656d756c-6174-6564-2064-657669636502"),
                    HasSubstr("cuda/0 = GPU-656d756c-6174-6564-2064-657669636500, cuda/1 = "),
                    HasSubstr("--cuda-devices")));
}

// Every call of the CUDA runtime fails in turn, for good, for lack of memory, and later than it was
// asked for.
TEST_F(CudaMemoryTest, EveryFailureIsToldAndTakesTheDeviceOutOfUse) {
  struct Failure {
    cudaError_t error;
    bool later;
  };
  const Bytes gradient = RandomElements(DType::kFloat32, 10'000, 9);
  for (const Failure failure :
       {Failure{cudaErrorIllegalAddress, false}, Failure{cudaErrorMemoryAllocation, false},
        Failure{cudaErrorECCUncorrectable, true}}) {
    int told = 0;
    for (size_t call = 1;; ++call) {
      SCOPED_TRACE(testing::Message() << cudaGetErrorName(failure.error) << " at " << call);
      Machine(1, gradient);
      emulated_cuda::ForgetCalls();
      const bool out_of_memory = failure.error == cudaErrorMemoryAllocation;
      if (failure.later) {
        emulated_cuda::FailWorkAt(call, failure.error, true);
      } else {
        emulated_cuda::FailAt(call, failure.error, !out_of_memory);
      }
      const absl::Status status = Run();
      const size_t calls = emulated_cuda::CallCount();
      emulated_cuda::ClearFailures();
      if (status.ok()) {
        // What failed came while the memory was closed, or after it.
        EXPECT_EQ(norm_, HostNorm(gradient));
        EXPECT_TRUE(fetched_ == Halved(gradient));
      } else if (out_of_memory) {
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
        EXPECT_THAT(failed_, IsEmpty());
        EXPECT_EQ(Run(), absl::OkStatus());
        devices_ = nullptr;
        buffer_ = nullptr;
        EXPECT_EQ(emulated_cuda::CountLive(), emulated_cuda::Live());
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr("cuda/0: "));
        EXPECT_THAT(failed_, ElementsAre("cuda/0"));
        EXPECT_EQ(Run(), status);
      }
      told += status.ok() ? 0 : 1;
      memory_ = nullptr;
      devices_ = nullptr;
      if (!out_of_memory) buffer_->Forget();
      if (call > calls) break;
    }
    EXPECT_GT(told, 5);
  }
}

}  // namespace
}  // namespace gradclip
