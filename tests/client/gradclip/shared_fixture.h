// A shared gradient, and a server that shares memory, both scripted by a test.
#ifndef GRADCLIP_TESTS_CLIENT_GRADCLIP_SHARED_FIXTURE_H_
#define GRADCLIP_TESTS_CLIENT_GRADCLIP_SHARED_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gradclip/client.h"
#include "gradclip/shared_gradient.h"
#include "tests/client/files/file_bytes.h"
#include "tests/client/gradclip/fake_memory_socket.h"
#include "tests/client/gradclip/fake_server.h"

namespace gradclip {

class SharedGradientTest : public ::testing::Test {
 protected:
  SharedGradientTest() {
    server_.info = [this](v1::GetServerInfoResponse& response) {
      ++infos_;
      response.set_memory_socket(path_);
      response.set_max_message_bytes(uint64_t{8} << 20);
      return grpc::Status::OK;
    };
    server_.clip = [this](ClipStream& stream) { return Clip(stream); };
    server_.compute_norm = [this](NormStream& stream, v1::ComputeNormResponse& response) {
      const auto received = ReadAll(stream);
      if (!received.shared.empty() && !Find(received.shared[0])) return Unknown();
      norm_.Set(received);
      response.mutable_norm()->set_total_norm(5);
      return grpc::Status::OK;
    };
    socket_.emplace(path_);
  }

  // A gradient of 3 and 2 numbers, with padding between them.
  SharedGradient Make(SharedGradientOptions options = {}) {
    if (!options.warn) {
      options.warn = [this](const std::string& warning) { warnings_.push_back(warning); };
    }
    auto made = SharedGradient::Make(
        client_, {{{"a", DType::kFloat32, {3}}, {"b", DType::kFloat32, {2}}}}, std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    Fill(*made);
    return *std::move(made);
  }

  static void Fill(SharedGradient& gradient) {
    for (const Tensor& tensor : gradient.tensors()) {
      auto* const values = static_cast<float*>(tensor.data);
      for (uint64_t i = 0; i < tensor.elements(); ++i) values[i] = 2.0f + static_cast<float>(i);
    }
  }

  static std::vector<float> Values(const SharedGradient& gradient) {
    std::vector<float> values;
    for (const Tensor& tensor : gradient.tensors()) {
      const auto* const data = static_cast<const float*>(tensor.data);
      values.insert(values.end(), data, data + tensor.elements());
    }
    return values;
  }

  static ClipOptions MaxNorm(double max_norm, ReplyMode reply = ReplyMode::kFastest) {
    ClipOptions options;
    options.max_norm = max_norm;
    options.reply = reply;
    return options;
  }

  // What a server does: halves shared memory in place unless the client does, and measures data.
  grpc::Status Clip(ClipStream& stream) {
    const auto received = ReadAll(stream);
    clip_.Set(received);
    const bool in_place = received.starts.at(0).reply() != v1::REPLY_COEFFICIENT;
    for (const v1::SharedRanges& shared : received.shared) {
      const std::optional<FakeRegion> region = Find(shared);
      if (!region) return Unknown();
      for (int i = 0; in_place && i < shared.offset_size(); ++i) {
        auto* const values = reinterpret_cast<float*>(region->data + shared.offset(i));
        const uint64_t count = shared.length(i) / sizeof(float);
        std::for_each(values, values + count, [](float& value) { value /= 2; });
      }
    }
    SendResult(stream, 0.5, in_place);
    return grpc::Status::OK;
  }

  std::optional<FakeRegion> Find(const v1::SharedRanges& shared) const {
    for (const FakeRegion& region : socket_->regions()) {
      if (std::memcmp(region.token.data(), shared.region().data(), region.token.size()) == 0) {
        return region;
      }
    }
    return std::nullopt;
  }

  static grpc::Status Unknown() {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such region");
  }

  // How many clients have asked about the server.
  int infos() const { return infos_; }

  const Folder folder_;
  const std::string path_ = folder_ / "memory";
  std::atomic<int> infos_ = 0;
  Shared<Received<v1::ClipGradNormStart>> clip_;  // what the last call sent
  Shared<Received<v1::ComputeNormStart>> norm_;
  std::vector<std::string> warnings_;
  std::optional<FakeMemorySocket> socket_;
  FakeServer server_;
  Client client_{server_.address(), QuickRetries()};

 private:
  static ClientOptions QuickRetries() {
    ClientOptions options;
    options.initial_backoff = absl::Milliseconds(1);
    return options;
  }
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_GRADCLIP_SHARED_FIXTURE_H_
