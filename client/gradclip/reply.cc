#include "client/gradclip/reply.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "client/gradclip/answer.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"

namespace gradclip {
namespace {

using google::protobuf::internal::WireFormatLite;

constexpr uint32_t kResultTag =
    WireFormatLite::MakeTag(1, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr uint32_t kDataTag = WireFormatLite::MakeTag(2, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

absl::Status Unreadable() {
  return absl::InternalError("the server sent a message that is no ClipGradNormResponse");
}

}  // namespace

absl::Status NormReply::Take(grpc::ByteBuffer& message) {
  if (response_.has_value()) return absl::InternalError("the server sent a second answer");
  return Parse(message, response_.emplace());
}

absl::Status NormReply::CheckComplete() const {
  if (response_.has_value()) return absl::OkStatus();
  return absl::InternalError("the server ended the call without an answer");
}

ClipReply::ClipReply(std::span<const Tensor> tensors, uint64_t total_bytes, ReplyMode mode)
    : tensors_(tensors), total_bytes_(total_bytes), mode_(mode) {}

absl::Status ClipReply::Take(grpc::ByteBuffer& message, uint64_t sent_bytes) {
  const uint64_t message_bytes = message.Length();
  grpc::ProtoBufferReader slices(&message);
  if (!slices.status().ok()) return Unreadable();
  google::protobuf::io::CodedInputStream in(&slices);
  while (const uint32_t tag = in.ReadTag()) {
    if (tag != kResultTag && tag != kDataTag) {
      if (!WireFormatLite::SkipField(&in, tag)) return Unreadable();
      continue;
    }
    uint32_t length = 0;
    if (!in.ReadVarint32(&length) ||
        length > message_bytes - static_cast<uint64_t>(in.CurrentPosition())) {
      return Unreadable();
    }
    if (tag == kDataTag) {
      if (absl::Status taken = TakeData(in, length, sent_bytes); !taken.ok()) return taken;
    } else {
      const auto limit = in.PushLimit(static_cast<int>(length));
      if (absl::Status taken = TakeResult(in); !taken.ok()) return taken;
      in.PopLimit(limit);
    }
  }
  return in.ConsumedEntireMessage() ? absl::OkStatus() : Unreadable();
}

absl::Status ClipReply::TakeResult(google::protobuf::io::CodedInputStream& in) {
  if (result_.has_value()) return absl::InternalError("the server sent a second result");
  result_.emplace();
  if (!result_->ParseFromCodedStream(&in)) return Unreadable();
  if (result_->gradient_follows() && mode_ == ReplyMode::kCoefficient) {
    return absl::InternalError("the server announced gradient bytes where none were asked for");
  }
  if (!result_->gradient_follows() && mode_ == ReplyMode::kGradient && total_bytes_ > 0) {
    return absl::InternalError("the server announced no gradient bytes where they were asked for");
  }
  return absl::OkStatus();
}

absl::Status ClipReply::TakeData(google::protobuf::io::CodedInputStream& in, uint64_t length,
                                 uint64_t sent_bytes) {
  if (!result_.has_value()) return absl::InternalError("the server sent data before the result");
  if (length == 0) return absl::OkStatus();
  const uint64_t allowed = result_->gradient_follows() ? sent_bytes : 0;
  if (length > allowed - written_bytes_) {
    return absl::InternalError(absl::StrFormat(
        "the server sent %d bytes back where at most %d of the gradient's %d were to be sent",
        written_bytes_ + length, allowed, total_bytes_));
  }
  written_bytes_ += length;
  while (length > 0) {
    const Tensor& tensor = tensors_[tensor_];
    const uint64_t tensor_left = tensor.bytes() - tensor_offset_;
    const uint64_t run = std::min({length, tensor_left, uint64_t{std::numeric_limits<int>::max()}});
    if (run > 0 &&
        !in.ReadRaw(static_cast<std::byte*>(tensor.data) + tensor_offset_, static_cast<int>(run))) {
      return Unreadable();
    }
    length -= run;
    tensor_offset_ += run;
    if (run == tensor_left) {
      ++tensor_;
      tensor_offset_ = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status ClipReply::CheckComplete() const {
  if (!result_.has_value())
    return absl::InternalError("the server ended the call without a result");
  if (result_->gradient_follows() && written_bytes_ < total_bytes_) {
    return absl::InternalError(absl::StrFormat("the server sent %d of the gradient's %d bytes back",
                                               written_bytes_, total_bytes_));
  }
  return absl::OkStatus();
}

}  // namespace gradclip
