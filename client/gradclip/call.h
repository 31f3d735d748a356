// One try of one call over a connection of its own, driven by the calling thread alone: it writes,
// reads and waits on a completion queue of its own, so no other thread is woken for it.
//
// Functions; thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_CALL_H_
#define GRADCLIP_CLIENT_GRADCLIP_CALL_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/gradclip/connection.h"
#include "client/gradclip/outgoing.h"
#include "grpcpp/support/byte_buffer.h"

namespace gradclip {

// The contract's methods.
inline constexpr char kComputeNorm[] = "/gradclip.v1.GradClip/ComputeNorm";
inline constexpr char kClipGradNorm[] = "/gradclip.v1.GradClip/ClipGradNorm";
inline constexpr char kGetServerInfo[] = "/gradclip.v1.GradClip/GetServerInfo";
inline constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";

// What a streamed call tells its maker. An exception that one of them throws ends the call as its
// end does, and passes on.
struct StreamHandlers {
  // After each message that went out; the bytes of gradient that those gone so far stand for.
  absl::FunctionRef<void(uint64_t sent_bytes)> on_sent;
  // For each message that came; sent_bytes may already have been read by the transport. A status
  // other than OK cancels the call and becomes its status.
  absl::FunctionRef<absl::Status(grpc::ByteBuffer& message, uint64_t sent_bytes)> on_reply;
};

// What goes with a call.
struct CallTerms {
  absl::Time deadline;
  std::string_view traceparent = {};  // as CallOptions has it
};

// Sends `start` and all of `outgoing` to `method` ("/package.Service/Method") and hands every
// reply over as it comes, while it still writes. The status is the server's wherever it gave one,
// else the transport's. At the deadline DEADLINE_EXCEEDED, for which the connection is cut where
// the server does not take what gRPC is writing. When it returns, nothing of the gradient is held
// by gRPC. INTERNAL where the server said OK before it had taken everything.
absl::Status RunStream(Connection& connection, const std::string& method,
                       const grpc::ByteBuffer& start, Outgoing& outgoing, const CallTerms& terms,
                       const StreamHandlers& handlers);

// Sends one request and receives one response. Deadline and status as RunStream.
absl::Status RunUnary(Connection& connection, const std::string& method,
                      const grpc::ByteBuffer& request, const CallTerms& terms,
                      grpc::ByteBuffer& response);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_CALL_H_
