// What a server process really holds, by the system's own count. Not under sanitizers, whose own
// memory is many times the server's.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGradientBytes = 256 * kMiB;

// More than a server needs for itself and messages on their way (65 to 87 MiB were measured), and
// half of what it would hold if it kept a gradient.
constexpr uint64_t kUnkept = 128 * kMiB;

class ServerMemory : public testing::Test {
 protected:
  // A line of the process's status, such as VmRSS (now) and VmHWM (most ever), in bytes.
  uint64_t MemoryBytes(const std::string& name) {
    std::ifstream status("/proc/" + std::to_string(server_.process().pid()) + "/status");
    for (std::string key; status >> key;) {
      uint64_t kibibytes = 0;
      if (key == name + ":" && status >> kibibytes) return kibibytes << 10;
    }
    ADD_FAILURE() << "no " << name;
    return 0;
  }

  static void Declare(auto& start) {
    v1::TensorSpec& tensor = *start.add_tensors();
    tensor.set_dtype(v1::DTYPE_FLOAT32);
    tensor.add_shape(kGradientBytes / 4);
  }

  template <typename Request>
  static void SendAll(auto& stream) {
    Request data;
    data.set_data(std::string(kMiB, '\1'));
    for (uint64_t sent = 0; sent < kGradientBytes; sent += kMiB) ASSERT_TRUE(stream.Write(data));
    stream.WritesDone();
  }

  // Reads what comes back, while all is sent, and returns how many bytes that was.
  uint64_t Clip(v1::ReplyMode reply, bool norm_is_given = false) {
    v1::ClipGradNormRequest request;
    Declare(*request.mutable_start());
    request.mutable_start()->set_max_norm(1e-37);
    request.mutable_start()->set_reply(reply);
    if (norm_is_given) request.mutable_start()->set_total_norm(1);
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    EXPECT_TRUE(stream->Write(request));
    std::thread writer([&] { SendAll<v1::ClipGradNormRequest>(*stream); });
    uint64_t bytes = 0;
    v1::ClipGradNormResponse response;
    while (stream->Read(&response)) bytes += response.data().size();
    writer.join();
    const grpc::Status status = stream->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return bytes;
  }

  void ComputeNorm() {
    v1::ComputeNormRequest request;
    Declare(*request.mutable_start());
    grpc::ClientContext context;
    v1::ComputeNormResponse response;
    const auto stream = stub_->ComputeNorm(&context, &response);
    EXPECT_TRUE(stream->Write(request));
    SendAll<v1::ComputeNormRequest>(*stream);
    EXPECT_TRUE(stream->Finish().ok());
  }

  ServerProcess server_{{"--arena-trim-interval=200ms"}};
  std::unique_ptr<v1::GradClip::Stub> stub_ = v1::GradClip::NewStub(
      grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()));
};

TEST_F(ServerMemory, IsAtMostATenthAnd64MiBOverTheBytesKept) {
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(Clip(v1::REPLY_GRADIENT), kGradientBytes);
  }
  EXPECT_GE(MemoryBytes("VmHWM"), kGradientBytes);  // or the count is not what it should be
  EXPECT_LE(MemoryBytes("VmHWM"), kGradientBytes + kGradientBytes / 10 + 64 * kMiB);
}

TEST_F(ServerMemory, HoldsNoGradientWhereNoneHasToWait) {
  ComputeNorm();
  EXPECT_EQ(Clip(v1::REPLY_COEFFICIENT), 0u);
  EXPECT_EQ(Clip(v1::REPLY_GRADIENT, /*norm_is_given=*/true), kGradientBytes);
  EXPECT_LE(MemoryBytes("VmHWM"), kUnkept);
}

TEST_F(ServerMemory, GoesBackToTheSystemWhenTheServerIsIdle) {
  Clip(v1::REPLY_GRADIENT);
  while (MemoryBytes("VmRSS") > kUnkept) {  // a server that never trims runs into ctest's timeout
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace
}  // namespace gradclip
