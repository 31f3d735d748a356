// A session as its tests drive it: Start, Data, HalfClose, and the clipped bytes.
#ifndef GRADCLIP_TESTS_SERVER_SESSION_SESSION_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_SESSION_SESSION_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/backend/backend.h"
#include "server/memory/arena.h"
#include "server/session/session.h"

namespace gradclip {

// The elements' bytes as they stand in memory.
template <typename Element>
std::string Bytes(const std::vector<Element>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()),
                     elements.size() * sizeof(Element));
}

inline std::span<const std::byte> AsBytes(std::string_view bytes) {
  return std::as_bytes(std::span(bytes));
}

inline v1::TensorSpec TensorOf(v1::DType dtype, std::vector<int64_t> shape, std::string name = "") {
  v1::TensorSpec tensor;
  tensor.set_name(std::move(name));
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  return tensor;
}

// EXPECT that a status has this code and says this.
MATCHER_P2(Refuses, code, text, "") {
  *result_listener << arg;
  return arg.code() == code && std::string(arg.message()).find(text) != std::string::npos;
}

class SessionTest : public testing::Test {
 protected:
  SessionTest() : backend_(*MakeBackend("cpu/baseline")) { Restart(); }

  void Restart() {
    session_ =
        std::make_unique<Session>(Session::Means{.backend = *backend_,
                                                 .arenas = arenas_,
                                                 .max_call_bytes = max_call_bytes_,
                                                 .regions = regions_,
                                                 .max_ranges = max_ranges_,
                                                 .devices = devices_,
                                                 .host_on_device_error = host_on_device_error_});
  }

  // ClipGradNorm over F32 tensors w, of 2 elements each.
  static v1::ClipGradNormStart ClipStart(double max_norm, int tensors = 1) {
    v1::ClipGradNormStart start;
    for (int i = 0; i < tensors; ++i) {
      *start.add_tensors() = TensorOf(v1::DTYPE_FLOAT32, {2}, "w" + std::to_string(i));
    }
    start.set_max_norm(max_norm);
    return start;
  }

  absl::Status Send(v1::ClipGradNormStart start) { return session_->Start(std::move(start)); }
  absl::Status Send(v1::ComputeNormStart start) { return session_->Start(std::move(start)); }
  absl::Status Send(std::string_view bytes) { return session_->Data(AsBytes(bytes)); }
  absl::Status HalfClose() { return session_->HalfClose(); }

  // All of a call that must go well, with its data cut into messages of `message_bytes`.
  void Run(const v1::ClipGradNormStart& start, std::string_view bytes,
           size_t message_bytes = ~0ull) {
    ASSERT_EQ(Send(start), absl::OkStatus());
    while (!bytes.empty()) {
      const std::string_view message = bytes.substr(0, message_bytes);
      ASSERT_EQ(Send(message), absl::OkStatus());
      bytes.remove_prefix(message.size());
    }
    ASSERT_EQ(HalfClose(), absl::OkStatus());
  }

  const v1::ClipResult& result() const { return session_->result(); }

  std::string ClippedBytes() {
    std::string bytes;
    while (session_->has_segment()) {
      const absl::StatusOr<ReplySegment> segment = session_->NextSegment();
      if (!segment.ok()) {
        ADD_FAILURE() << segment.status();
        break;
      }
      bytes.append(reinterpret_cast<const char*>(segment->bytes.data()), segment->bytes.size());
    }
    return bytes;
  }

  uint64_t max_call_bytes_ = uint64_t{1} << 30;
  const RegionRegistry* regions_ = nullptr;
  uint64_t max_ranges_ = 1000;
  Devices* devices_ = nullptr;
  bool host_on_device_error_ = true;
  std::unique_ptr<Backend> backend_;
  ArenaPool arenas_;
  std::unique_ptr<Session> session_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SESSION_SESSION_FIXTURE_H_
