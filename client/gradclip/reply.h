// What the server answers to one call. ClipGradNorm: the result, then clipped bytes, which go
// straight from the received slices into the caller's memory. Not thread-safe; one per try.
#ifndef GRADCLIP_CLIENT_GRADCLIP_REPLY_H_
#define GRADCLIP_CLIENT_GRADCLIP_REPLY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "gradclip/client.h"
#include "gradclip/v1/gradclip.pb.h"
#include "grpcpp/support/byte_buffer.h"

namespace gradclip {

class NormReply {
 public:
  // Takes the one message. INTERNAL where the server breaks the contract.
  absl::Status Take(grpc::ByteBuffer& message);

  // At the end of a call with status OK: INTERNAL unless the answer has come.
  absl::Status CheckComplete() const;

  // REQUIRES: CheckComplete() is OK.
  const v1::NormResult& result() const { return response_->norm(); }

 private:
  std::optional<v1::ComputeNormResponse> response_;
};

class ClipReply {
 public:
  // REQUIRES: total_bytes is what the tensors hold together. (No tensors and 0 bytes where the
  // gradient is in shared memory: then no data may come.)
  ClipReply(std::span<const Tensor> tensors, uint64_t total_bytes, ReplyMode mode);

  // Takes the next message; sent_bytes of the gradient have been handed to the transport, and no
  // more may have come back (those beyond are still to be read from the memory). INTERNAL where the
  // server breaks the contract; what came before then stands in the memory.
  absl::Status Take(grpc::ByteBuffer& message, uint64_t sent_bytes);

  // At the end of a call with status OK: INTERNAL unless all that was announced has come.
  absl::Status CheckComplete() const;

  // REQUIRES: CheckComplete() is OK.
  const v1::ClipResult& result() const { return *result_; }

  bool has_result() const { return result_.has_value(); }

  // Bytes of the caller's memory that the server's have replaced.
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  absl::Status TakeResult(google::protobuf::io::CodedInputStream& in);
  absl::Status TakeData(google::protobuf::io::CodedInputStream& in, uint64_t length,
                        uint64_t sent_bytes);

  const std::span<const Tensor> tensors_;
  const uint64_t total_bytes_;
  const ReplyMode mode_;
  std::optional<v1::ClipResult> result_;
  uint64_t written_bytes_ = 0;
  size_t tensor_ = 0;  // the next byte goes into this tensor,
  uint64_t tensor_offset_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_REPLY_H_
