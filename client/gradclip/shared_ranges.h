// The SharedRanges messages of a gradient in a registered region. The same bytes serve both RPCs:
// the field has one number in their requests.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SHARED_RANGES_H_
#define GRADCLIP_CLIENT_GRADCLIP_SHARED_RANGES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/gradclip/outgoing.h"
#include "client/gradclip/shared_layout.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/shm/registration.h"

namespace gradclip {

// One serialised message and the bytes of gradient that its ranges hold.
struct RangesMessage {
  grpc::ByteBuffer message;
  uint64_t bytes = 0;
};

// At most 32,768 ranges each, half a MiB, or fewer where messages may have `max_message_bytes`; but
// one at least.
std::vector<RangesMessage> SerialiseRanges(const RegionToken& token,
                                           std::span<const SharedRange> ranges,
                                           uint64_t max_message_bytes);

// Sends such messages in one call. Not thread-safe. The messages must outlive it.
class OutgoingRanges : public Outgoing {
 public:
  explicit OutgoingRanges(std::span<const RangesMessage> messages);

  uint64_t total_bytes() const override { return total_bytes_; }
  uint64_t cut_bytes() const override { return cut_bytes_; }
  bool done() const override { return sent_ == messages_.size(); }
  grpc::ByteBuffer Next() override;
  bool AwaitReturn(absl::Duration) override { return true; }  // messages hold no memory of callers

  size_t sent() const { return sent_; }  // how many messages gRPC has been given

 private:
  const std::span<const RangesMessage> messages_;
  uint64_t total_bytes_ = 0;
  uint64_t cut_bytes_ = 0;
  size_t sent_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SHARED_RANGES_H_
