// The client that calls both servers in the same way: prepared messages out, replies counted and
// dropped. Its cost is the same for both, so what differs is the servers'. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_CALLER_H_
#define GRADCLIP_TESTS_BENCH_CALLER_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace gradclip::bench {

inline constexpr char kComputeNorm[] = "/gradclip.v1.GradClip/ComputeNorm";
inline constexpr char kClipGradNorm[] = "/gradclip.v1.GradClip/ClipGradNorm";

// A connection of its own to `address`, with no limit of message sizes.
std::shared_ptr<grpc::Channel> OwnChannel(const std::string& address);

class Caller {
 public:
  // A connection of its own to `address`.
  explicit Caller(const std::string& address);
  ~Caller();
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  // One call: all messages, half-close, all replies, status. INTERNAL unless the replies hold at
  // least `reply_bytes`: a benchmark of an answer that did not come would be worthless.
  absl::Status Call(const std::string& method, std::span<const grpc::ByteBuffer> messages,
                    uint64_t reply_bytes);

 private:
  std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_CALLER_H_
