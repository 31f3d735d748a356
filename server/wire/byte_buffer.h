// Between grpc::ByteBuffer and bytes, without copying payloads. Received slices are at most 64 KiB,
// start anywhere, cut elements and may be empty (gRPC 1.51).
#ifndef GRADCLIP_SERVER_WIRE_BYTE_BUFFER_H_
#define GRADCLIP_SERVER_WIRE_BYTE_BUFFER_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/wire/message.h"

namespace gradclip {

// A received message's slices, held. Not thread-safe.
class ReceivedMessage {
 public:
  // Takes the slices out of `buffer` and leaves it empty.
  explicit ReceivedMessage(grpc::ByteBuffer& buffer);

  // Its bytes, good while this lives.
  Pieces pieces() const;
  size_t size() const { return size_; }
  std::string Flatten() const;

 private:
  std::vector<grpc::Slice> slices_;
  size_t size_ = 0;
};

// A response message of `data`, whose bytes stay where they are: `owner` is held until the
// transport has let go of them.
grpc::ByteBuffer DataMessage(std::span<const std::byte> data, std::shared_ptr<const void> owner);

// A serialised message.
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_WIRE_BYTE_BUFFER_H_
