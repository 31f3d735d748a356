#include "server/wire/byte_buffer.h"

#include <array>
#include <utility>

namespace gradclip {

ReceivedMessage::ReceivedMessage(grpc::ByteBuffer& buffer) {
  // Dump() fails only for an invalid buffer, which a completed read never leaves; such a one is
  // empty.
  if (!buffer.Dump(&slices_).ok()) slices_.clear();
  buffer.Clear();
  for (const grpc::Slice& slice : slices_) size_ += slice.size();
}

Pieces ReceivedMessage::pieces() const {
  Pieces pieces;
  pieces.reserve(slices_.size());
  for (const grpc::Slice& slice : slices_) {
    pieces.emplace_back(reinterpret_cast<const std::byte*>(slice.begin()), slice.size());
  }
  return pieces;
}

std::string ReceivedMessage::Flatten() const {
  std::string flat;
  flat.reserve(size_);
  for (const grpc::Slice& slice : slices_) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return flat;
}

grpc::ByteBuffer DataMessage(std::span<const std::byte> data, std::shared_ptr<const void> owner) {
  std::array<std::byte, kMaxDataHeaderBytes> header;
  const size_t header_bytes = WriteDataHeader(data.size(), header.data());
  auto* held = new std::shared_ptr<const void>(std::move(owner));
  // The transport only reads; its interface wants a pointer to what is not const.
  const std::array<grpc::Slice, 2> slices = {
      grpc::Slice(header.data(), header_bytes),
      grpc::Slice(
          const_cast<std::byte*>(data.data()), data.size(),
          [](void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); }, held)};
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace gradclip
