// A gradient in memory of a GPU, the emulated one, that a real server measures and clips there.
#include "gradclip/cuda_gradient.h"

#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "emulated_cuda.h"
#include "tests/bench/elements.h"
#include "tests/server/backend/cuda/device_buffer.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class CudaGradientServer : public ServerTest {
 protected:
  CudaGradientServer() {
    emulated_cuda::Reset();
    std::string folder = testing::TempDir() + "gradclip-XXXXXX";
    folder_ = mkdtemp(folder.data());
    options_.listen = {"unix:" + folder_ + "/server"};
    options_.memory_socket = folder_ + "/memory";
    options_.max_shared_bytes = options_.max_shared_bytes_per_peer = options_.memory_budget;
    options_.compute_threads = 2;
    options_.allow_cuda_ipc = true;
    client_.emplace(options_.listen[0]);
  }
  ~CudaGradientServer() override {
    server_.reset();
    emulated_cuda::Reset();
    std::filesystem::remove_all(folder_);
  }

  // All of the buffer.
  static CudaMemory MemoryOf(const DeviceBuffer& buffer) {
    CudaMemory memory = {.bytes = buffer.size()};
    cudaIpcMemHandle_t handle;
    MustSucceed(cudaIpcGetMemHandle(&handle, buffer.device()));
    std::memcpy(memory.handle.data(), &handle, sizeof(handle));
    cudaDeviceProp properties;
    MustSucceed(cudaGetDeviceProperties(&properties, 0));
    std::memcpy(memory.uuid.data(), &properties.uuid, sizeof(properties.uuid));
    return memory;
  }

  // 3 and 4, and behind a gap 12.
  CudaGradient MakeTriple(DeviceBuffer& buffer) {
    const std::vector<float> values = {3, 4, 100, 12};
    buffer.Put(values.data());
    absl::StatusOr<CudaGradient> gradient =
        CudaGradient::Make(*client_, MemoryOf(buffer),
                           {{{"a", DType::kFloat32, {2}}, {"b", DType::kFloat32, {1}}}}, {{0, 12}});
    EXPECT_TRUE(gradient.ok()) << gradient.status();
    return *std::move(gradient);
  }

  static std::vector<float> Values(DeviceBuffer& buffer) {
    std::vector<float> values(buffer.size() / sizeof(float));
    std::memcpy(values.data(), buffer.Get(), buffer.size());
    return values;
  }

  static ClipOptions MaxNorm(double max_norm, ReplyMode reply = ReplyMode::kFastest) {
    ClipOptions options;
    options.max_norm = max_norm;
    options.epsilon = 0;
    options.reply = reply;
    return options;
  }

  std::string folder_;
  std::optional<Client> client_;
};

TEST_F(CudaGradientServer, MeasuresAndClipsWhereItIs) {
  Serve();
  DeviceBuffer buffer(16);
  CudaGradient gradient = MakeTriple(buffer);
  const absl::StatusOr<NormAnswer> norm = gradient.ComputeNorm();
  ASSERT_TRUE(norm.ok()) << norm.status();
  EXPECT_EQ(norm->total_norm, 13);
  EXPECT_EQ(norm->backend, "cuda/0");
  EXPECT_THAT(Values(buffer), ElementsAre(3, 4, 100, 12));
  const absl::StatusOr<ClipAnswer> answer = gradient.Clip(MaxNorm(6.5));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->norm.total_norm, 13);
  EXPECT_EQ(answer->coefficient, 0.5);
  EXPECT_TRUE(answer->clipped);
  EXPECT_THAT(Values(buffer), ElementsAre(1.5, 2, 100, 6));
}

TEST_F(CudaGradientServer, LeavesMultiplyingToTheCaller) {
  Serve();
  DeviceBuffer buffer(16);
  CudaGradient gradient = MakeTriple(buffer);
  const auto answer = gradient.Clip(MaxNorm(6.5, ReplyMode::kCoefficient));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->coefficient, 0.5);
  EXPECT_THAT(Values(buffer), ElementsAre(3, 4, 100, 12));
}

// Tensors of all types with ends in the middle of blocks.
TEST_F(CudaGradientServer, HasTheBitsOfAStreamedGradient) {
  Serve();
  std::vector<Tensor> tensors;
  std::vector<uint64_t> offsets;
  uint64_t bytes = 0;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    for (const int64_t elements : {1, 4095, 20001}) {
      tensors.push_back({"", dtype, {elements}});
      offsets.push_back(bytes);
      bytes += (tensors.back().bytes() + 63) / 64 * 64;
    }
  }
  std::vector<std::byte> all(bytes);
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].data = all.data() + offsets[i];
    bench::FillElements(tensors[i].dtype,
                        {all.data() + offsets[i], (tensors[i].bytes() + 7) / 8 * 8});
  }
  DeviceBuffer buffer(all.data(), all.size());
  auto gradient = CudaGradient::Make(*client_, MemoryOf(buffer), tensors, offsets);
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  const absl::StatusOr<ClipAnswer> in_place = gradient->Clip(MaxNorm(0.1));
  ASSERT_TRUE(in_place.ok()) << in_place.status();
  const absl::StatusOr<ClipAnswer> streamed = client_->Clip(tensors, MaxNorm(0.1));
  ASSERT_TRUE(streamed.ok()) << streamed.status();
  EXPECT_EQ(in_place->norm.total_norm, streamed->norm.total_norm);
  EXPECT_EQ(in_place->coefficient, streamed->coefficient);
  const std::byte* const clipped = buffer.Get();
  // What lies between tensors, too.
  EXPECT_EQ(std::memcmp(clipped, all.data(), all.size()), 0);
}

TEST_F(CudaGradientServer, LetsGoOfItBeforeItIsFreed) {
  Serve();
  {
    DeviceBuffer buffer(16);
    CudaGradient gradient = MakeTriple(buffer);
    ASSERT_TRUE(gradient.Clip(MaxNorm(6.5)).ok());
    EXPECT_GT(emulated_cuda::CountLive().ipc_mappings, 0u);
    EXPECT_TRUE(gradient.Release(absl::InfiniteDuration()));
    EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
    // It can be handed over again.
    ASSERT_TRUE(gradient.ComputeNorm().ok());
  }
  EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
}

TEST_F(CudaGradientServer, IsRegisteredAnewWithAServerThatHasRestarted) {
  Serve();
  DeviceBuffer buffer(16);
  CudaGradient gradient = MakeTriple(buffer);
  ASSERT_TRUE(gradient.Clip(MaxNorm(6.5)).ok());
  Serve();
  const absl::StatusOr<ClipAnswer> answer = gradient.Clip(MaxNorm(3.25));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->norm.total_norm, 6.5);
  EXPECT_THAT(Values(buffer), ElementsAre(0.75, 1, 100, 3));
}

TEST_F(CudaGradientServer, IsAnErrorWhereTheGpuFails) {
  Serve();
  DeviceBuffer buffer(16);
  {
    CudaGradient gradient = MakeTriple(buffer);
    ASSERT_TRUE(gradient.Clip(MaxNorm(6.5)).ok());
    emulated_cuda::ForgetCalls();
    emulated_cuda::FailCall("cudaStreamQuery", 1, cudaErrorLaunchFailure);
    const absl::Status clip = gradient.Clip(MaxNorm(1)).status();
    EXPECT_EQ(clip.code(), absl::StatusCode::kDataLoss) << clip;
    EXPECT_THAT(std::string(clip.message()), HasSubstr("cuda/0: "));
    // The device is out of use from then on: there is nothing to go on with.
    CallOptions soon;
    soon.timeout = absl::Milliseconds(200);
    EXPECT_FALSE(gradient.ComputeNorm({}, soon).ok());
  }
  EXPECT_EQ(Values(buffer).at(2), 100);
}

TEST_F(CudaGradientServer, IsRefusedByAServerThatWasNotToldToTakeIt) {
  options_.allow_cuda_ipc = false;
  Serve();
  DeviceBuffer buffer(16);
  CudaGradient gradient = MakeTriple(buffer);
  const absl::Status status = gradient.Clip(MaxNorm(6.5)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--allow-cuda-ipc"));
  EXPECT_THAT(Values(buffer), ElementsAre(3, 4, 100, 12));
}

TEST_F(CudaGradientServer, IsRefusedByAServerThatDoesNotUseTheGpu) {
  Serve();
  DeviceBuffer buffer(16);
  CudaMemory memory = MemoryOf(buffer);
  memory.uuid.fill(std::byte{9});
  auto gradient = CudaGradient::Make(*client_, memory, {{{"a", DType::kFloat32, {2}}}}, {{0}});
  ASSERT_TRUE(gradient.ok());
  EXPECT_EQ(gradient->ComputeNorm().status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace gradclip
