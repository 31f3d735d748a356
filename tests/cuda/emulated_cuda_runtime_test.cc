// Streams, events, memory, planned failures and misuse on the emulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

#include "cuda.h"
#include "emulated_cuda.h"
#include "tests/cuda/emulated_cuda_fixture.h"
#include "tests/cuda/emulated_cuda_test_kernels.h"

namespace gradclip {
namespace {

using emulated_cuda::CountLive;
using emulated_cuda::LastMessage;
using emulated_cuda::Live;
using emulated_cuda::Mode;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kCount = 1000;
constexpr size_t kBytes = kCount * sizeof(unsigned);

class EmulatedStreams : public EmulatedCuda {
 protected:
  // Queues a copy of the pinned values to the device.
  void CopyIn(unsigned* device, const unsigned* pinned, cudaStream_t stream) {
    ASSERT_EQ(cudaMemcpyAsync(device, pinned, kBytes, cudaMemcpyHostToDevice, stream), cudaSuccess);
  }
  void CopyOut(unsigned* pinned, const unsigned* device, cudaStream_t stream) {
    ASSERT_EQ(cudaMemcpyAsync(pinned, device, kBytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  }
  unsigned* PinnedValues(unsigned value) {
    auto* const values = Pinned<unsigned>(kCount);
    std::fill_n(values, kCount, value);
    return values;
  }
};

TEST_F(EmulatedStreams, CopyReadsItsSourceWhenItsTurnComes) {
  for (const Mode mode : {Mode::kLazy, Mode::kEager}) {
    Restart({.mode = mode});
    auto* const device = OnDevice<unsigned>(kCount);
    auto* const source = PinnedValues(1);
    CopyIn(device, source, stream_);
    std::fill_n(source, kCount, 2u);  // too early
    ASSERT_EQ(Wait(), cudaSuccess);
    EXPECT_THAT(Read(device, kCount), Each(mode == Mode::kLazy ? 2u : 1u));
  }
}

TEST_F(EmulatedStreams, RandomModeRunsSomeWorkEarly) {
  size_t early = 0;
  for (uint64_t seed = 0; seed < 32; ++seed) {
    Restart({.mode = Mode::kRandom, .seed = seed});
    auto* const device = OnDevice<unsigned>(kCount);
    auto* const source = PinnedValues(1);
    CopyIn(device, source, stream_);
    std::fill_n(source, kCount, 2u);
    early += Read(device, 1)[0] == 1u;
  }
  EXPECT_GT(early, 0u);
  EXPECT_LT(early, 32u);
}

TEST_F(EmulatedStreams, WorkRunsInTheOrderOfItsStream) {
  auto* const device = OnDevice<unsigned>(kCount);
  auto* const in = PinnedValues(3);
  auto* const out = PinnedValues(0);
  CopyIn(device, in, stream_);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 4), cudaSuccess);
  CopyOut(out, device, stream_);
  EXPECT_EQ(emulated_cuda::PendingWork(), 3u);
  EXPECT_EQ(out[0], 0u);
  ASSERT_EQ(Wait(), cudaSuccess);
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
  EXPECT_THAT(std::vector<unsigned>(out, out + kCount), Each(7u));
}

TEST_F(EmulatedStreams, OneStreamDoesNotWaitForAnother) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaStream_t const other = NewStream();
  auto* const out = PinnedValues(9);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 4), cudaSuccess);
  CopyOut(out, device, other);
  ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_EQ(out[0], 0u);
}

TEST_F(EmulatedStreams, EventOrdersStreams) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaStream_t const other = NewStream();
  cudaEvent_t const event = NewEvent();
  auto* const out = PinnedValues(9);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 4), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  // Comes behind the event: nobody waits for it.
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 100), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, event, 0), cudaSuccess);
  CopyOut(out, device, other);
  ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_THAT(std::vector<unsigned>(out, out + kCount), Each(4u));
  EXPECT_EQ(emulated_cuda::PendingWork(), 1u);
}

TEST_F(EmulatedStreams, EventStandsForItsLastRecord) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaEvent_t const event = NewEvent();
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 1), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
}

TEST_F(EmulatedStreams, QueriesMakeProgress) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaEvent_t const event = NewEvent();
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 1), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
}

TEST_F(EmulatedStreams, QueriesOfAHungDeviceMakeNone) {
  Restart({.devices = std::vector<emulated_cuda::Device>(2)});
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaEvent_t const event = NewEvent();
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 1), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  const size_t pending = emulated_cuda::PendingWork();
  emulated_cuda::Hang(0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  }
  EXPECT_EQ(emulated_cuda::PendingWork(), pending);

  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaStream_t other = nullptr;
  ASSERT_EQ(cudaStreamCreate(&other), cudaSuccess);
  cudaEvent_t const others = NewEvent();
  ASSERT_EQ(cudaEventRecord(others, other), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(others), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(others), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(other), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);

  emulated_cuda::Resume(0);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
}

TEST_F(EmulatedStreams, EventsTellTheTimeBetweenThem) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  ASSERT_EQ(cudaEventCreate(&begin), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  float milliseconds = -1;
  ASSERT_EQ(cudaEventRecord(begin, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 1), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(end, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
  EXPECT_GT(milliseconds, 0);
  cudaEvent_t untimed = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(untimed, stream_), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(untimed), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, untimed), cudaErrorInvalidResourceHandle);
}

TEST_F(EmulatedStreams, DefaultStreamWaitsForBlockingStreamsAlone) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  ASSERT_EQ(LaunchAdd(blocking, device, kCount, 1), cudaSuccess);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 10), cudaSuccess);
  ASSERT_EQ(LaunchAdd(nullptr, device, kCount, 100), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  auto* const out = PinnedValues(0);
  CopyOut(out, device, blocking);
  ASSERT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(out[0], 101u);
}

TEST_F(EmulatedStreams, FreeAndDestroyLetWorkFinish) {
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  auto* const more = OnDevice<unsigned>(1);
  auto* const out = PinnedValues(9);
  ASSERT_EQ(LaunchAdd(stream_, device, kCount, 4), cudaSuccess);
  CopyOut(out, device, stream_);
  ASSERT_EQ(cudaFree(more), cudaSuccess);
  EXPECT_EQ(out[kCount - 1], 4u);
  CopyIn(device, out, stream_);
  ASSERT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
  EXPECT_EQ(cudaStreamDestroy(stream_), cudaErrorInvalidResourceHandle);
}

TEST_F(EmulatedStreams, AreOfTheirDevice) {
  Restart({.devices = std::vector<emulated_cuda::Device>(2)});
  auto* const device = OnDevice(std::vector<unsigned>(kCount));
  cudaEvent_t const event = NewEvent();
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaStream_t const second = NewStream();
  EXPECT_EQ(LaunchAdd(stream_, device, kCount, 4), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, second), cudaErrorInvalidResourceHandle);
  // These CUDA allows.
  EXPECT_EQ(cudaMemsetAsync(device, 0, kBytes, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
}

TEST_F(EmulatedStreams, MayBeUsedByManyThreads) {
  constexpr unsigned kThreads = 8;
  std::vector<std::thread> threads;
  std::atomic<unsigned> right = 0;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      cudaStream_t const stream = NewStream();
      auto* const device = OnDevice<unsigned>(kCount);
      auto* const pinned = Pinned<unsigned>(kCount);
      for (unsigned round = 0; round < 5; ++round) {
        std::fill_n(pinned, kCount, t);
        CopyIn(device, pinned, stream);
        EXPECT_EQ(LaunchAdd(stream, device, kCount, round), cudaSuccess);
        CopyOut(pinned, device, stream);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        right += pinned[kCount - 1] == t + round;
      }
      EXPECT_EQ(cudaFree(device), cudaSuccess);
      EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
      EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * 5);
  EXPECT_EQ(CountLive(), (Live{.streams = 1}));
}

class EmulatedMemory : public EmulatedStreams {
 protected:
  using GetAddressRange = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);
  static GetAddressRange AddressRange() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    EXPECT_EQ(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, 12000,
                                               cudaEnableDefault, &result),
              cudaSuccess);
    EXPECT_EQ(result, cudaDriverEntryPointSuccess);
    return reinterpret_cast<GetAddressRange>(function);
  }
};

TEST_F(EmulatedMemory, EndsAtTheDevicesSize) {
  Restart({.devices = {{.memory = 1 << 20}, {.memory = 4 << 20}}});
  auto* const half = OnDevice<char>(512 << 10);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, (512 << 10) + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(pointer, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, ~size_t{0}), cudaErrorMemoryAllocation);
  size_t free = 0;
  size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 512u << 10);
  EXPECT_EQ(total, 1u << 20);
  ASSERT_EQ(cudaFree(half), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 1 << 20), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 4 << 20), cudaSuccess);
}

TEST_F(EmulatedMemory, CopiesTakePinnedMemoryAndTheRightKindAlone) {
  auto* const device = OnDevice<unsigned>(kCount);
  auto* const pinned = PinnedValues(1);
  std::vector<unsigned> pageable(kCount);
  const auto copy = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, stream_);
  };
  EXPECT_EQ(copy(device, pageable.data(), kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_THAT(LastMessage(), HasSubstr("pageable"));
  EXPECT_EQ(copy(pageable.data(), device, kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(device, pinned, kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_THAT(LastMessage(), HasSubstr("kind"));
  EXPECT_EQ(copy(pinned, device, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(device, pinned, kBytes, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(device, pinned, kBytes, static_cast<cudaMemcpyKind>(7)),
            cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(copy(device + 1, pinned, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_THAT(LastMessage(), HasSubstr("beyond"));
  EXPECT_EQ(emulated_cuda::PendingWork(), 0u);
  EXPECT_EQ(copy(device, pinned, kBytes, cudaMemcpyDefault), cudaSuccess);

  ASSERT_EQ(cudaHostRegister(pageable.data(), kBytes, cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(pageable.data() + 1, 4, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(copy(pageable.data(), device, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(pageable.data()), cudaSuccess);
  EXPECT_THAT(pageable, Each(1u));
  EXPECT_EQ(cudaHostUnregister(pageable.data()), cudaErrorHostMemoryNotRegistered);
}

TEST_F(EmulatedMemory, MemsetFillsBytes) {
  auto* const device = OnDevice<unsigned>(4);
  ASSERT_EQ(cudaMemsetAsync(device + 1, 0xab, 8, stream_), cudaSuccess);
  EXPECT_THAT(Read(device, 4), ElementsAre(0xa5a5a5a5u, 0xababababu, 0xababababu, 0xa5a5a5a5u));
  EXPECT_EQ(cudaMemsetAsync(device + 1, 0, 16, stream_), cudaErrorInvalidValue);
}

TEST_F(EmulatedMemory, PointersTellWhatTheyAre) {
  auto* const device = OnDevice<unsigned>(8);
  auto* const pinned = Pinned<unsigned>(8);
  unsigned local = 0;
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device + 1), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(attributes.devicePointer, device + 1);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, pinned), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, &local), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);

  const GetAddressRange get = AddressRange();
  CUdeviceptr base = 0;
  size_t size = 0;
  ASSERT_EQ(get(&base, &size, reinterpret_cast<CUdeviceptr>(device + 3)), CUDA_SUCCESS);
  EXPECT_EQ(base, reinterpret_cast<CUdeviceptr>(device));
  EXPECT_EQ(size, 32u);
  EXPECT_EQ(get(&base, &size, reinterpret_cast<CUdeviceptr>(&local)), CUDA_ERROR_INVALID_VALUE);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  ASSERT_EQ(cudaGetDriverEntryPointByVersion("cuNothing", &function, 12000, 0, &result),
            cudaSuccess);
  EXPECT_EQ(result, cudaDriverEntryPointSymbolNotFound);
}

TEST_F(EmulatedMemory, IpcHandleMapsTheSameMemoryElsewhere) {
  auto* const exported = OnDevice(std::vector<unsigned>(kCount, 5));
  cudaIpcMemHandle_t handle;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, exported + 10), cudaSuccess);
  void* opened = nullptr;
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, handle, 0), cudaErrorInvalidValue);
  ASSERT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess), cudaSuccess);
  EXPECT_NE(opened, exported);
  void* again = nullptr;
  ASSERT_EQ(cudaIpcOpenMemHandle(&again, handle, cudaIpcMemLazyEnablePeerAccess), cudaSuccess);
  EXPECT_EQ(again, opened);
  EXPECT_EQ(CountLive().ipc_mappings, 2u);

  auto* const mapped = static_cast<unsigned*>(opened);
  ASSERT_EQ(LaunchAdd(stream_, mapped, kCount, 2), cudaSuccess);
  EXPECT_THAT(Read(exported, kCount), Each(7u));
  EXPECT_EQ(cudaFree(opened), cudaErrorInvalidValue);
  ASSERT_EQ(cudaIpcCloseMemHandle(opened), cudaSuccess);
  EXPECT_THAT(Read(mapped, kCount), Each(7u));
  ASSERT_EQ(cudaIpcCloseMemHandle(opened), cudaSuccess);
  EXPECT_EQ(cudaIpcCloseMemHandle(opened), cudaErrorInvalidValue);
  ASSERT_EQ(LaunchAdd(stream_, mapped, kCount, 2), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
}

TEST_F(EmulatedMemory, IpcHandleMustBeOfLiveMemory) {
  auto* const exported = OnDevice<unsigned>(kCount);
  cudaIpcMemHandle_t handle;
  EXPECT_EQ(cudaIpcGetMemHandle(&handle, Pinned<unsigned>(1)), cudaErrorInvalidValue);
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, exported), cudaSuccess);
  ASSERT_EQ(cudaFree(exported), cudaSuccess);
  void* opened = nullptr;
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
            cudaErrorMapBufferObjectFailed);
  std::memset(&handle, 7, sizeof handle);
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
            cudaErrorInvalidResourceHandle);
}

// A process with device memory of kCount elements, each 5, whose handle it has written to a pipe.
// It lives until Finish, which gives whether the elements are 7 then.
class Exporter {
 public:
  Exporter() {
    int to_parent[2];
    int to_child[2];
    EXPECT_EQ(pipe(to_parent), 0);
    EXPECT_EQ(pipe(to_child), 0);
    process_ = fork();
    if (process_ == 0) _exit(Run(to_parent[1], to_child[0]));
    EXPECT_GT(process_, 0);
    close(to_parent[1]);
    close(to_child[0]);
    EXPECT_EQ(read(to_parent[0], &handle_, sizeof handle_), ssize_t{sizeof handle_});
    close(to_parent[0]);
    finish_ = to_child[1];
  }
  ~Exporter() {
    if (finish_ >= 0) Finish();
  }
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  bool Finish() {
    EXPECT_EQ(write(finish_, "x", 1), 1);
    close(finish_);
    finish_ = -1;
    int status = 0;
    EXPECT_EQ(waitpid(process_, &status, 0), process_);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  const cudaIpcMemHandle_t& handle() const { return handle_; }

 private:
  static int Run(int out, int in) {
    emulated_cuda::Reset();
    std::vector<unsigned> values(kCount, 5);
    void* memory = nullptr;
    cudaIpcMemHandle_t handle;
    char byte = 0;
    if (cudaMalloc(&memory, kBytes) != cudaSuccess ||
        cudaMemcpy(memory, values.data(), kBytes, cudaMemcpyHostToDevice) != cudaSuccess ||
        cudaIpcGetMemHandle(&handle, memory) != cudaSuccess ||
        write(out, &handle, sizeof handle) != ssize_t{sizeof handle} || read(in, &byte, 1) != 1 ||
        cudaMemcpy(values.data(), memory, kBytes, cudaMemcpyDeviceToHost) != cudaSuccess) {
      return 2;
    }
    return values == std::vector<unsigned>(kCount, 7) ? 0 : 1;
  }

  pid_t process_ = -1;
  int finish_ = -1;
  cudaIpcMemHandle_t handle_ = {};
};

TEST_F(EmulatedMemory, IpcHandleMapsTheMemoryOfAnotherProcess) {
  Exporter exporter;
  void* opened = nullptr;
  void* again = nullptr;
  for (void** const pointer : {&opened, &again}) {
    ASSERT_EQ(cudaIpcOpenMemHandle(pointer, exporter.handle(), cudaIpcMemLazyEnablePeerAccess),
              cudaSuccess);
  }
  EXPECT_EQ(again, opened);
  EXPECT_EQ(CountLive().ipc_mappings, 2u);
  auto* const mapped = static_cast<unsigned*>(opened);
  CUdeviceptr base = 0;
  size_t size = 0;
  ASSERT_EQ(AddressRange()(&base, &size, reinterpret_cast<CUdeviceptr>(mapped + 3)), CUDA_SUCCESS);
  EXPECT_EQ(base, reinterpret_cast<CUdeviceptr>(mapped));
  EXPECT_EQ(size, kBytes);
  EXPECT_THAT(Read(mapped, kCount), Each(5u));
  ASSERT_EQ(LaunchAdd(stream_, mapped, kCount, 2), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess);
  EXPECT_TRUE(exporter.Finish());
  EXPECT_THAT(Read(mapped, kCount), Each(7u));  // a process that has ended leaves the memory
  EXPECT_EQ(cudaIpcCloseMemHandle(opened), cudaSuccess);
  EXPECT_EQ(cudaIpcCloseMemHandle(opened), cudaSuccess);
  EXPECT_EQ(cudaIpcOpenMemHandle(&opened, exporter.handle(), cudaIpcMemLazyEnablePeerAccess),
            cudaErrorMapBufferObjectFailed);
  EXPECT_EQ(opened, nullptr);
}

TEST_F(EmulatedMemory, IpcHandleOfAnotherProcessIsHeldAgainstItsFile) {
  const Exporter exporter;
  // Behind the magic: process, descriptor, the file's number, offset, bytes, device.
  for (const size_t byte : {16, 20, 24, 32, 33, 41, 42, 43, 47, 48, 51}) {
    cudaIpcMemHandle_t handle = exporter.handle();
    reinterpret_cast<unsigned char*>(&handle)[byte] ^= 0x80;
    void* opened = nullptr;
    EXPECT_EQ(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
              cudaErrorMapBufferObjectFailed)
        << byte;
  }
  EXPECT_EQ(CountLive().ipc_mappings, 0u);
}

TEST_F(EmulatedMemory, WhatIsLeftBehindIsCounted) {
  auto* const device = OnDevice<unsigned>(10);
  auto* const pinned = Pinned<unsigned>(10);
  cudaEvent_t const event = NewEvent();
  EXPECT_EQ(CountLive(), (Live{.device_allocations = 1,
                               .device_bytes = 40,
                               .pinned_allocations = 1,
                               .streams = 1,
                               .events = 1}));
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  EXPECT_EQ(CountLive(), Live{});
}

class EmulatedFailures : public EmulatedStreams {
 protected:
  // What a backend does, cleaning up whatever fails: the first error.
  static cudaError_t AddOneOnTheDevice(unsigned* value) {
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
    unsigned* device = nullptr;
    unsigned* pinned = nullptr;
    cudaError_t first = cudaSuccess;
    const auto keep = [&first](cudaError_t error) {
      if (first == cudaSuccess) first = error;
      return first == cudaSuccess;
    };
    if (keep(cudaSetDevice(0)) && keep(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) &&
        keep(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)) &&
        keep(cudaMalloc(&device, 4)) && keep(cudaHostAlloc(&pinned, 4, 0))) {
      *pinned = *value;
      keep(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream)) &&
          keep(LaunchAdd(stream, device, 1, 1)) &&
          keep(cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, stream)) &&
          keep(cudaEventRecord(event, stream)) && keep(cudaEventSynchronize(event));
      if (first == cudaSuccess) *value = *pinned;
    }
    if (pinned != nullptr) keep(cudaFreeHost(pinned));
    if (device != nullptr) keep(cudaFree(device));
    if (event != nullptr) keep(cudaEventDestroy(event));
    if (stream != nullptr) keep(cudaStreamDestroy(stream));
    return first;
  }
};

TEST_F(EmulatedFailures, AtEveryCallReachTheCallerAndLeaveNothingBehind) {
  unsigned value = 1;
  ASSERT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  emulated_cuda::ForgetCalls();
  ASSERT_EQ(AddOneOnTheDevice(&value), cudaSuccess);
  EXPECT_EQ(value, 2u);
  const std::vector<std::string> calls = emulated_cuda::Calls();
  EXPECT_THAT(calls,
              ElementsAre("cudaSetDevice", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags",
                          "cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaLaunchKernelExC",
                          "cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize",
                          "cudaFreeHost", "cudaFree", "cudaEventDestroy", "cudaStreamDestroy"));
  for (const bool sticky : {false, true}) {
    for (size_t n = 1; n <= calls.size(); ++n) {
      emulated_cuda::Reset();
      emulated_cuda::FailAt(n, cudaErrorECCUncorrectable, sticky);
      EXPECT_EQ(AddOneOnTheDevice(&value), cudaErrorECCUncorrectable) << n << calls[n - 1];
      EXPECT_EQ(cudaPeekAtLastError(), cudaErrorECCUncorrectable);
      EXPECT_EQ(CountLive(), Live{}) << n << calls[n - 1];
      if (!sticky) {
        EXPECT_EQ(AddOneOnTheDevice(&value), cudaSuccess);
      }
    }
  }
}

TEST_F(EmulatedFailures, InWorkReachTheNextCallThatWaits) {
  for (const bool sticky : {false, true}) {
    Restart();
    auto* const device = OnDevice(std::vector<unsigned>(kCount));
    emulated_cuda::ForgetCalls();
    emulated_cuda::FailWorkAt(1, cudaErrorIllegalAddress, sticky);
    ASSERT_EQ(LaunchAdd(stream_, device, kCount, 1), cudaSuccess);
    ASSERT_EQ(LaunchAdd(stream_, device, kCount, 2), cudaSuccess);
    EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
    if (sticky) {
      EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
      EXPECT_EQ(cudaFree(device), cudaErrorIllegalAddress);
    } else {
      EXPECT_EQ(Wait(), cudaSuccess);
      EXPECT_THAT(Read(device, kCount), Each(2u));
    }
  }
}

TEST_F(EmulatedFailures, OfOneFunction) {
  emulated_cuda::FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaSuccess);
  emulated_cuda::FailCall("cudaMalloc", 4, cudaErrorMemoryAllocation);
  emulated_cuda::ClearFailures();
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaSuccess);
}

TEST_F(EmulatedFailures, StickyErrorIsOfOneDeviceAndStays) {
  Restart({.devices = std::vector<emulated_cuda::Device>(2)});
  emulated_cuda::FailAt(1, cudaErrorIllegalAddress, true);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaErrorIllegalAddress);
  int count = 0;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaSuccess);
  Restart();
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaSuccess);
}

TEST_F(EmulatedFailures, LaunchesAreChecked) {
  auto* const device = OnDevice<unsigned>(kCount);
  EXPECT_EQ(LaunchIndex(0, 32, stream_, device), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchIndex(1, 0, stream_, device), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchIndex(1, 1025, stream_, device), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchIndex(1, dim3(32, 33), stream_, device), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchIndex(dim3(1, 65536), 32, stream_, device), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchIndex(1, 32, reinterpret_cast<cudaStream_t>(77), device),
            cudaErrorInvalidResourceHandle);
  cudaLaunchConfig_t config = {};
  config.stream = stream_;
  config.dynamicSmemBytes = (48 << 10) + 1;
  EXPECT_EQ(cudaLaunchKernelEx(
                &config, +[] {}),
            cudaErrorInvalidValue);
}

TEST_F(EmulatedFailures, DevicesMayBeMissingOldOrWithoutAKernelImage) {
  int count = 9;
  Restart({.devices = {}});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 1), cudaErrorNoDevice);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
  Restart({.driver_version = 0});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&count), cudaSuccess);
  Restart({.devices = {{.has_kernel_image = false}}});
  cudaFuncAttributes attributes;
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, SumKernel()), cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(LaunchIndex(1, 1, stream_, OnDevice<unsigned>(1)), cudaErrorNoKernelImageForDevice);
}

TEST_F(EmulatedFailures, DevicesTellWhatTheyAre) {
  Restart(
      {.devices = {{}, {.name = "Second", .memory = 1 << 20, .multiprocessors = 7, .major = 8}}});
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 2);
  cudaDeviceProp first;
  cudaDeviceProp second;
  ASSERT_EQ(cudaGetDeviceProperties(&first, 0), cudaSuccess);
  ASSERT_EQ(cudaGetDeviceProperties(&second, 1), cudaSuccess);
  EXPECT_STREQ(second.name, "Second");
  EXPECT_EQ(second.totalGlobalMem, 1u << 20);
  EXPECT_NE(std::memcmp(&first.uuid, &second.uuid, sizeof first.uuid), 0);
  int value = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 1), cudaSuccess);
  EXPECT_EQ(value, 7);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 2),
            cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  char id[32];
  ASSERT_EQ(cudaDeviceGetPCIBusId(id, sizeof id, 1), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetByPCIBusId(&value, id), cudaSuccess);
  EXPECT_EQ(value, 1);
  cudaFuncAttributes attributes;
  ASSERT_EQ(cudaFuncGetAttributes(&attributes, SumKernel()), cudaSuccess);
  EXPECT_EQ(attributes.binaryVersion, 90);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, SumKernel(), 256, 0),
            cudaSuccess);
  EXPECT_EQ(value, 8);
  EXPECT_STREQ(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
}

TEST_F(EmulatedFailures, CurrentDeviceIsOfTheThread) {
  Restart({.devices = std::vector<emulated_cuda::Device>(2)});
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  int other = -1;
  std::thread([&other] { EXPECT_EQ(cudaGetDevice(&other), cudaSuccess); }).join();
  EXPECT_EQ(other, 0);
}

}  // namespace
}  // namespace gradclip
