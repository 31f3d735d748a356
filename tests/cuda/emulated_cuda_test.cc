// What kernels compute on the emulated device, and how their mistakes are caught.
#include "emulated_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <numeric>

#include "tests/cuda/emulated_cuda_fixture.h"
#include "tests/cuda/emulated_cuda_test_kernels.h"

namespace gradclip {
namespace {

using emulated_cuda::LastMessage;
using emulated_cuda::Mode;
using ::testing::Each;
using ::testing::HasSubstr;

bool Failed(int status) {
  return !testing::ExitedWithCode(0)(status);
}

class EmulatedKernels : public EmulatedCuda, public testing::WithParamInterface<Mode> {
 protected:
  EmulatedKernels() { Restart({.mode = GetParam()}); }
};

TEST_P(EmulatedKernels, ComputeASumByShufflesSharedMemoryAndAtomics) {
  std::vector<float> values(100'000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1000) * 0.125f;
  const double expected = std::accumulate(values.begin(), values.end(), 0.0);
  const float* const in = OnDevice(values);
  for (const unsigned blocks : {1u, 3u, 64u}) {
    for (const unsigned threads : {32u, 256u, 1024u}) {
      if (blocks * threads > 64 * 256) continue;
      auto* const out = OnDevice<double>(blocks);
      auto* const total = OnDevice<double>(1);
      auto* const finished = OnDevice<unsigned>(1);
      ASSERT_EQ(cudaMemsetAsync(finished, 0, sizeof(unsigned), stream_), cudaSuccess);
      ASSERT_EQ(LaunchSum(blocks, threads, stream_, in, values.size(), out, total, finished),
                cudaSuccess);
      ASSERT_EQ(Wait(), cudaSuccess) << LastMessage();
      EXPECT_EQ(Read(total, 1)[0], expected) << blocks << " x " << threads;
    }
  }
}

TEST_P(EmulatedKernels, GiveEachLaneItsResultOfWarpOperations) {
  auto* const out = OnDevice<unsigned>(64 * kWarpWords);
  ASSERT_EQ(LaunchWarp(stream_, out), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess) << LastMessage();
  const std::vector<unsigned> rows = Read(out, 64 * kWarpWords);
  for (unsigned thread = 0; thread < 64; ++thread) {
    if (thread == 3) continue;
    const unsigned* const row = &rows[thread * kWarpWords];
    const unsigned lane = thread % 32;
    const unsigned warp = thread - lane;
    const bool first = warp == 0;
    const unsigned here = first ? ~8u : ~0u;
    SCOPED_TRACE(thread);
    EXPECT_EQ(row[0], 0xaaaaaaaau & here);
    EXPECT_EQ(row[1], 1u);
    EXPECT_EQ(row[2], 0u);
    EXPECT_EQ(row[3], warp + 5);
    EXPECT_EQ(row[4], first && lane == 2 ? ~0u : thread ^ 1);
    EXPECT_EQ(row[5], lane < 2 ? thread : first && lane == 5 ? ~0u : thread - 2);
    EXPECT_EQ(row[6], lane % 16 >= 14 ? thread : first && lane == 1 ? ~0u : thread + 2);
    EXPECT_EQ(row[7], first ? 496u - 3 : 496u);
    EXPECT_EQ(row[8], warp);
    EXPECT_EQ(row[9], warp + 31);
    EXPECT_EQ(row[10], here);
    EXPECT_EQ(row[11], (lane < 16 ? 0xffffu : 0xffff0000u) & here);
    EXPECT_EQ(row[12], here);
    EXPECT_EQ(row[13], 7u);
    // Lane 2 gets a NaN, from the lane that has returned.
    if (!first || lane != 2) {
      EXPECT_EQ(row[14], lane == 31 ? 31 : lane + 1);
    }
    EXPECT_EQ(row[15], warp + (lane & ~7u) + 1);
  }
}

TEST_P(EmulatedKernels, KnowTheirIndexInThreeDimensions) {
  const dim3 grid(3, 2, 4);
  const dim3 block(5, 4, 3);
  auto* const out = OnDevice<unsigned>(24 * 60);
  ASSERT_EQ(LaunchIndex(grid, block, stream_, out), cudaSuccess);
  const std::vector<unsigned> indices = Read(out, 24 * 60);
  for (unsigned i = 0; i < indices.size(); ++i) EXPECT_EQ(indices[i], i);
}

TEST_P(EmulatedKernels, PassABarrierThatReturnedThreadsDoNotReach) {
  auto* const out = OnDevice(std::vector<unsigned>(97));
  ASSERT_EQ(LaunchEarlyExit(stream_, out), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess) << LastMessage();
  const std::vector<unsigned> words = Read(out, 97);
  EXPECT_EQ(words[0], 64u);
  for (unsigned i = 0; i < 96; ++i) EXPECT_EQ(words[1 + i], i % 3 == 1 ? 0u : 4u);
}

TEST_P(EmulatedKernels, UpdateMemoryByAtomics) {
  auto* const words = OnDevice(std::vector<unsigned>{0, 1000, 0, 0, 0, 0});
  auto* const wide = OnDevice(std::vector<unsigned long long>{0, ~0ull, 0});
  auto* const sum = OnDevice(std::vector<double>{0});
  ASSERT_EQ(LaunchAtomics(stream_, words, wide, sum), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess) << LastMessage();
  const std::vector<unsigned> got = Read(words, 6);
  EXPECT_EQ(got[0], 255u * 128);
  EXPECT_EQ(got[1], 0u);
  EXPECT_EQ(got[2], 255u);
  EXPECT_EQ(got[3], ~0u);
  EXPECT_EQ(got[4], 77u);
  // In ascending order each thread finds its own number; at least the first does in any order.
  EXPECT_GE(got[5], 1u);
  const std::vector<unsigned long long> got_wide = Read(wide, 3);
  EXPECT_EQ(got_wide[0], (255ull * 128) << 32);
  EXPECT_EQ(got_wide[1], 1ull << 40);
  EXPECT_EQ(got_wide[2], (1ull << 40) + 255);
  EXPECT_EQ(Read(sum, 1)[0], 64.0);
}

TEST_P(EmulatedKernels, KeepSubnormalsWhateverTheHostDoes) {
  auto* const value = OnDevice(std::vector<float>{0x1p-140f});
  ASSERT_EQ(LaunchSubnormal(stream_, value), cudaSuccess);
  __builtin_ia32_ldmxcsr(0x9fc0);  // flush to zero, denormals are zero
  const cudaError_t error = Wait();
  __builtin_ia32_ldmxcsr(0x1f80);
  ASSERT_EQ(error, cudaSuccess);
  EXPECT_EQ(Read(value, 1)[0], 0x1p-141f);
}

INSTANTIATE_TEST_SUITE_P(Modes, EmulatedKernels,
                         testing::Values(Mode::kLazy, Mode::kEager, Mode::kRandom),
                         [](const auto& mode) {
                           return mode.param == Mode::kLazy    ? "Lazy"
                                  : mode.param == Mode::kEager ? "Eager"
                                                               : "Random";
                         });

class EmulatedDevice : public EmulatedCuda {};

#ifdef __SANITIZE_THREAD__
TEST_F(EmulatedDevice, ThreadSanitizerShowsAMissingBarrier) {
  auto* const out = OnDevice<unsigned>(256);
  EXPECT_DEATH(
      {
        LaunchWithoutBarrier(stream_, out);
        Wait();
        std::_Exit(1);  // where the report does not end the process
      },
      "data race");
}
#else
TEST_F(EmulatedDevice, RandomOrderShowsAMissingBarrier) {
  bool right = true;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Restart({.mode = Mode::kRandom, .seed = seed});
    auto* const out = OnDevice<unsigned>(256);
    ASSERT_EQ(LaunchWithoutBarrier(stream_, out), cudaSuccess);
    const std::vector<unsigned> values = Read(out, 256);
    for (unsigned i = 0; i < 256; ++i) {
      right = right && values[i] == 1000 * (i / 64 + 1) + (i + 63) % 64;
    }
  }
  EXPECT_FALSE(right);
}
#endif

TEST_F(EmulatedDevice, SaysWhichThreadsWaitForever) {
  const std::pair<Hang, const char*> hangs[] = {
      {Hang::kMaskOfAnother, "(0, 0, 0) is in __ballot_sync with mask 0x00000003"},
      {Hang::kMaskWithoutItself, "does not name the calling lane"},
      {Hang::kMissingLanes, "names lanes that the last warp of this block lacks"},
      {Hang::kDifferentBarriers, "is in __syncthreads"},
      {Hang::kDifferentOperations, "is in __shfl_xor_sync"},
  };
  for (const auto& [hang, message] : hangs) {
    Restart();
    auto* const out = OnDevice<unsigned>(64);
    ASSERT_EQ(LaunchHang(stream_, out, hang), cudaSuccess);
    EXPECT_EQ(Wait(), cudaErrorLaunchFailure) << message;
    EXPECT_THAT(LastMessage(), HasSubstr(message));
    EXPECT_EQ(Wait(), cudaErrorLaunchFailure);
  }
}

TEST_F(EmulatedDevice, RunsKernelsAfterOneThatFailed) {
  auto* out = OnDevice<unsigned>(64);
  ASSERT_EQ(LaunchHang(stream_, out, Hang::kDifferentOperations), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorLaunchFailure);
  Restart();
  out = OnDevice(std::vector<unsigned>(64));
  ASSERT_EQ(LaunchAdd(stream_, out, 64, 5), cudaSuccess);
  EXPECT_THAT(Read(out, 64), Each(5u));
}

TEST_F(EmulatedDevice, HostCannotTouchDeviceMemory) {
  volatile auto* const values = OnDevice<unsigned>(4);
  EXPECT_DEATH({ values[0] = 1; }, kAnyDeath);
  EXPECT_DEATH({ std::cerr << values[0]; }, kAnyDeath);
}

TEST_F(EmulatedDevice, HostCannotTouchDeviceMemoryAfterWorkHasRun) {
  auto* const values = OnDevice(std::vector<unsigned>(4));
  ASSERT_EQ(LaunchAdd(stream_, values, 4, 1), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess);
  EXPECT_DEATH({ *static_cast<volatile unsigned*>(values) = 1; }, kAnyDeath);
}

TEST_F(EmulatedDevice, StoreBehindAnAllocationIsCaught) {
  auto* const values = OnDevice<unsigned>(10);
  // AddressSanitizer ends the process; without, the launch fails.
  EXPECT_EXIT(
      {
        LaunchStore(stream_, values, 10, false);
        if (Wait() == cudaErrorIllegalAddress) std::_Exit(1);
        std::_Exit(0);
      },
      Failed, "a store behind the allocation|AddressSanitizer");
}

TEST_F(EmulatedDevice, StoreBeforeAnAllocationIsCaught) {
  auto* const values = OnDevice<unsigned>(10);
  EXPECT_EXIT(
      {
        LaunchStore(stream_, values, -1, false);
        if (Wait() == cudaErrorIllegalAddress) std::_Exit(1);
        std::_Exit(0);
      },
      Failed, "a store before the allocation|AddressSanitizer");
}

TEST_F(EmulatedDevice, StoreFarBehindAnAllocationDies) {
  auto* const values = OnDevice<unsigned>(10);
  EXPECT_DEATH(
      {
        LaunchStore(stream_, values, 64, false);
        Wait();
      },
      "a kernel touches .*block .0, 0, 0., thread .0, 0, 0.|Sanitizer");
}

TEST_F(EmulatedDevice, StoreIntoFreedMemoryDies) {
  auto* const values = OnDevice<unsigned>(10);
  auto* const more = OnDevice<unsigned>(10);
  ASSERT_EQ(cudaFree(values), cudaSuccess);
  EXPECT_DEATH(
      {
        LaunchStore(stream_, more, values - more, false);
        Wait();
      },
      kAnyDeath);
}

TEST_F(EmulatedDevice, CheckedStoreBehindAnAllocationFailsTheLaunch) {
  auto* const values = OnDevice<unsigned>(10);
  ASSERT_EQ(LaunchStore(stream_, values, 10, true), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
  EXPECT_THAT(LastMessage(), HasSubstr("may not touch"));
}

TEST_F(EmulatedDevice, KernelMayTouchPinnedMemory) {
  auto* const values = Pinned<unsigned>(4);
  std::fill_n(values, 4, 1u);
  ASSERT_EQ(LaunchAdd(stream_, values, 4, 1), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess);
  EXPECT_EQ(values[3], 2u);
}

TEST_F(EmulatedDevice, KernelGivenPageableMemoryFails) {
  std::vector<unsigned> values(4);
  ASSERT_EQ(LaunchAdd(stream_, values.data(), 4, 1), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
  EXPECT_THAT(LastMessage(), HasSubstr("pageable"));
  EXPECT_EQ(values[0], 0u);
}

TEST_F(EmulatedDevice, LoadOfPageableMemoryFails) {
  const unsigned value = 1;
  auto* const out = OnDevice<unsigned>(1);
  ASSERT_EQ(LaunchReadHidden(stream_, {&value}, out), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
}

TEST_F(EmulatedDevice, MisalignedLoadFails) {
  auto* const values = OnDevice(std::vector<unsigned>(2));
  const auto* const odd =
      reinterpret_cast<const unsigned*>(reinterpret_cast<const char*>(values) + 2);
  auto* const out = OnDevice<unsigned>(1);
  ASSERT_EQ(LaunchReadHidden(stream_, {odd}, out), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorMisalignedAddress);
}

TEST_F(EmulatedDevice, KernelCannotTouchAnotherDevicesMemory) {
  Restart({.devices = std::vector<emulated_cuda::Device>(2)});
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  auto* const values = OnDevice(std::vector<unsigned>(4));
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ASSERT_EQ(LaunchAdd(stream_, values, 4, 1), cudaSuccess);
  EXPECT_EQ(Wait(), cudaErrorIllegalAddress);
  EXPECT_THAT(LastMessage(), HasSubstr("another device's"));
}

#ifdef __SANITIZE_ADDRESS__
TEST_F(EmulatedDevice, StoreBeyondSharedMemoryIsCaught) {
  auto* const out = OnDevice<unsigned>(1);
  EXPECT_DEATH(
      {
        LaunchSharedOverrun(stream_, out, 8);
        Wait();
      },
      "global-buffer-overflow|out of bounds");
}
#endif

TEST_F(EmulatedDevice, RunsALaunchOf64By256InMilliseconds) {
  const std::vector<float> values(64 * 256, 1.0f);
  const float* const in = OnDevice(values);
  auto* const out = OnDevice<double>(64);
  auto* const total = OnDevice<double>(1);
  auto* const finished = OnDevice(std::vector<unsigned>(1));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(LaunchSum(64, 256, stream_, in, values.size(), out, total, finished), cudaSuccess);
  ASSERT_EQ(Wait(), cudaSuccess);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  RecordProperty("milliseconds", std::to_string(took.count()));
  std::cout << took.count() << " ms\n";
  EXPECT_EQ(Read(total, 1)[0], 64.0 * 256);
}

}  // namespace
}  // namespace gradclip
