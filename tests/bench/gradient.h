// Made-up gradients: in memory, and as prepared messages. Filled memory is read by many at once;
// the rest is not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_GRADIENT_H_
#define GRADCLIP_TESTS_BENCH_GRADIENT_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gradclip/client.h"
#include "gradclip/v1/gradclip.pb.h"
#include "tests/bench/elements.h"

namespace gradclip::bench {

// Bytes on huge pages where the system has them, as the server's own memory is.
class Pages {
 public:
  explicit Pages(uint64_t bytes);

  std::span<std::byte> bytes() const { return {memory_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_;
};

// An F32 gradient whose tensors stand one after another in memory.
class Gradient {
 public:
  // One tensor a shape.
  explicit Gradient(const std::vector<std::vector<int64_t>>& shapes);

  std::span<const Tensor> tensors() const { return tensors_; }
  uint64_t bytes() const { return bytes_; }

  // What opens a call for it: the tensors are declared, all else is the caller's to set.
  v1::ComputeNormRequest NormStart() const;
  v1::ClipGradNormRequest ClipStart(v1::ReplyMode reply, double max_norm) const;

  // All messages of a call: `start`, then the bytes in messages of `message_bytes`, whose slices
  // point into this gradient, which must outlive them.
  std::vector<grpc::ByteBuffer> Messages(const google::protobuf::MessageLite& start,
                                         uint64_t message_bytes) const;

 private:
  uint64_t bytes_ = 0;
  std::vector<Tensor> tensors_;
  std::unique_ptr<Pages> pages_;
};

// Tensors of 16 MiB that make `bytes` together. REQUIRES: bytes is a multiple of 4.
Gradient LargeGradient(uint64_t bytes);
// The 41 tensors, 1.4 MB, of a small character transformer.
Gradient TransformerGradient();
Gradient OneElement();
Gradient ManySmallTensors();  // 4,000 of 64 elements

// The shapes of TransformerGradient().
std::vector<std::vector<int64_t>> TransformerShapes();

// max_norm that clips these gradients whatever their size, without making elements subnormal, and
// one that never does.
inline constexpr double kClips = 1e-6;
inline constexpr double kNeverClips = 1e9;

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_GRADIENT_H_
