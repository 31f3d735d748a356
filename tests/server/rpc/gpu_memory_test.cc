// CUDA memory through a real server with the emulated GPU: registered over its memory socket,
// measured and clipped in place. That the memory's owner is this process, the emulated runtime
// allows.
#include <gmock/gmock.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "emulated_cuda.h"
#include "tests/server/backend/cuda/device_buffer.h"
#include "tests/server/rpc/memory_socket_server.h"

namespace gradclip {
namespace {

using testing::Contains;
using testing::HasSubstr;

// Memory of this thread's current GPU, registered over a connection of its own.
class OnGpu {
 public:
  OnGpu(const std::string& socket, const std::string& bytes, uint16_t flags = 0)
      : buffer_(bytes.data(), bytes.size()), connection_(socket) {
    CudaAllocation allocation;
    cudaIpcMemHandle_t handle;
    MustSucceed(cudaIpcGetMemHandle(&handle, buffer_.device()));
    std::memcpy(allocation.handle.data(), &handle, sizeof handle);
    int device = 0;
    MustSucceed(cudaGetDevice(&device));
    cudaDeviceProp properties;
    MustSucceed(cudaGetDeviceProperties(&properties, device));
    std::memcpy(allocation.uuid.data(), &properties.uuid, sizeof properties.uuid);
    const auto more = ToBytes(allocation);
    request_ = RegistrationBytes({.magic = Registration::Magic(),
                                  .kind = Registration::kCudaMemory,
                                  .flags = flags,
                                  .length = bytes.size()});
    request_.append(reinterpret_cast<const char*>(more.data()), more.size());
    answer_ = Register(connection_);
  }

  std::optional<MemoryClient::Answer> Register(MemoryClient& connection) const {
    EXPECT_TRUE(connection.Send(request_));
    return connection.Receive();
  }

  const std::optional<MemoryClient::Answer>& answer() const { return answer_; }

  template <typename Request = v1::ClipGradNormRequest>
  Request Ranges(uint64_t offset, uint64_t length) const {
    return RangesOf<Request>(answer_->token, offset, length);
  }

  std::string Read() {
    return std::string(reinterpret_cast<const char*>(buffer_.Get()), buffer_.size());
  }

  // The GPU has failed.
  void Forget() { buffer_.Forget(); }
  void Close() { connection_.Close(); }

 private:
  DeviceBuffer buffer_;
  MemoryClient connection_;
  std::string request_;
  std::optional<MemoryClient::Answer> answer_;
};

class GpuMemory : public MemorySocketServer {
 protected:
  GpuMemory() { options_.allow_cuda_ipc = true; }
  ~GpuMemory() override {
    server_.reset();
    EXPECT_EQ(emulated_cuda::CountLive().ipc_mappings, 0u);
    emulated_cuda::Reset();
  }
};

TEST_F(GpuMemory, IsClippedInPlace) {
  Serve();
  OnGpu memory(socket(), Bytes<float>({0, 3, 4, 0}));
  ASSERT_TRUE(memory.answer().has_value());
  ASSERT_EQ(memory.answer()->code, absl::StatusCode::kOk) << memory.answer()->message;
  const Reply reply = Clip({ClipStart(1, 2), memory.Ranges(4, 8)});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 5);
  EXPECT_EQ(reply.result.norm().backend(), "cuda/0");
  EXPECT_TRUE(reply.gradient.empty());
  const auto c = static_cast<float>(reply.result.coefficient());
  EXPECT_EQ(memory.Read(), Bytes<float>({0, 3 * c, 4 * c, 0}));
}

TEST_F(GpuMemory, IsClippedTogetherWithTheHosts) {
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}));
  Shared host(socket(), uint64_t{4} << 20);
  host.Write(8, Bytes<float>({12}));
  const Reply reply =
      Clip({ClipStart(1, 2 + host.size() / 4), memory.Ranges(0, 8), host.Ranges(0, host.size())});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 13);
  const auto c = static_cast<float>(reply.result.coefficient());
  EXPECT_EQ(memory.Read(), Bytes<float>({3 * c, 4 * c}));
  EXPECT_EQ(host.Read(8, 4), Bytes<float>({12 * c}));
}

TEST_F(GpuMemory, GoesTogetherWithDataAndIsReadOnlyForItsNorm) {
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}), Registration::kReadOnly);
  v1::ClipGradNormRequest start = ClipStart(1, 4);
  start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  const Reply reply = Clip({start, Data(Bytes<float>({12, 0})), memory.Ranges(0, 8)});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 13);
  EXPECT_EQ(memory.Read(), Bytes<float>({3, 4}));
  start.mutable_start()->set_reply(v1::REPLY_GRADIENT);
  EXPECT_EQ(Clip({start, memory.Ranges(0, 8)}).status.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(GpuMemory, IsGivenUpWithItsConnection) {
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}));
  const v1::ClipGradNormRequest ranges = memory.Ranges(0, 8);
  memory.Close();
  while (emulated_cuda::CountLive().ipc_mappings > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const Reply reply = Clip({ClipStart(1, 2), ranges});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(GpuMemory, IsNotTakenUnlessThatIsAllowed) {
  options_.allow_cuda_ipc = false;
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}));
  ASSERT_TRUE(memory.answer().has_value());
  EXPECT_EQ(memory.answer()->code, absl::StatusCode::kUnimplemented);
  EXPECT_THAT(memory.answer()->message, HasSubstr("--allow-cuda-ipc"));
}

TEST_F(GpuMemory, IsNotTakenWhereOnlyTheCpuIsUsed) {
  options_.backend = "cpu";
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}));
  ASSERT_TRUE(memory.answer().has_value());
  EXPECT_EQ(memory.answer()->code, absl::StatusCode::kUnimplemented);
}

// Work that waits for a GPU has threads of its own, and each GPU has its own.
TEST_F(GpuMemory, KeepsNoOthersWaitingWhereTheGpuDoesNotAnswer) {
  constexpr int kWaiting = 12;
  emulated_cuda::Reset({.devices = std::vector<emulated_cuda::Device>(2)});
  options_.compute_threads = 1;
  Serve();
  MustSucceed(cudaSetDevice(0));
  OnGpu hung(socket(), Bytes<float>({3, 4}));
  MustSucceed(cudaSetDevice(1));
  OnGpu well(socket(), Bytes<float>({8, 15}));
  Shared host(socket(), uint64_t{4} << 20);
  host.Write(0, Bytes<float>({12, 5}));

  emulated_cuda::Hang(0);
  emulated_cuda::ForgetCalls();
  std::vector<Reply> waiting(kWaiting);
  std::vector<std::thread> callers;
  for (Reply& reply : waiting) {
    callers.emplace_back([&] { reply = Clip({ClipStart(100, 2), hung.Ranges(0, 8)}); });
  }
  EXPECT_TRUE(
      Await([] { return testing::Value(emulated_cuda::Calls(), Contains("cudaStreamQuery")); }));
  EXPECT_TRUE(Await([&] { return server_->calls() == kWaiting; }));

  const Reply on_host = Clip({ClipStart(1, host.size() / 4), host.Ranges(0, host.size())});
  EXPECT_TRUE(on_host.status.ok()) << on_host.status.error_message();
  EXPECT_EQ(on_host.result.norm().total_norm(), 13);
  const Reply on_other = Clip({ClipStart(1, 2), well.Ranges(0, 8)});
  EXPECT_TRUE(on_other.status.ok()) << on_other.status.error_message();
  EXPECT_EQ(on_other.result.norm().total_norm(), 17);
  EXPECT_TRUE(Await([&] { return server_->calls() == kWaiting; }));  // who waited still does

  emulated_cuda::Resume(0);
  for (std::thread& caller : callers) caller.join();
  for (const Reply& reply : waiting) {
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.result.norm().total_norm(), 5);
  }
}

// The host has no other way to the bytes, so that no policy makes it take over.
TEST_F(GpuMemory, EndsTheCallWhereTheGpuFails) {
  Serve();
  OnGpu memory(socket(), Bytes<float>({3, 4}));
  emulated_cuda::FailCall("cudaStreamQuery", 1, cudaErrorLaunchFailure, /*sticky=*/true);
  for (int call = 0; call < 2; ++call) {
    const Reply reply = Clip({ClipStart(1, 2), memory.Ranges(0, 8)});
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_THAT(reply.status.error_message(), HasSubstr("is as it was: cuda/0: "));
  }
  MemoryClient later(socket());
  EXPECT_EQ(memory.Register(later)->code, absl::StatusCode::kUnavailable);
  memory.Forget();  // what the GPU has goes with it
  server_.reset();
  emulated_cuda::Reset();
}

}  // namespace
}  // namespace gradclip
