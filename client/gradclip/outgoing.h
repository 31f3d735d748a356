// What a streamed call sends after its start message: the gradient, as bytes or as ranges of shared
// memory. Each implementation says its threading rule.
#ifndef GRADCLIP_CLIENT_GRADCLIP_OUTGOING_H_
#define GRADCLIP_CLIENT_GRADCLIP_OUTGOING_H_

#include <cstdint>

#include "absl/time/time.h"
#include "grpcpp/support/byte_buffer.h"

namespace gradclip {

class Outgoing {
 public:
  virtual ~Outgoing() = default;

  virtual uint64_t total_bytes() const = 0;  // of the gradient
  virtual uint64_t cut_bytes() const = 0;    // of these, what the messages made so far stand for
  virtual bool done() const = 0;             // no message is left

  // The next message. REQUIRES: !done().
  virtual grpc::ByteBuffer Next() = 0;

  // False where gRPC still holds memory of the caller's after `patience`.
  virtual bool AwaitReturn(absl::Duration patience) = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_OUTGOING_H_
