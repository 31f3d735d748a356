#include "client/gradclip/shared_ranges.h"

#include <algorithm>
#include <string>

#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

constexpr uint64_t kMaxRanges = 32768;

// An offset and a length, and what stands around all of them: token, tags and lengths.
constexpr uint64_t kRangeBytes = 16;
constexpr uint64_t kOtherBytes = 64;

grpc::ByteBuffer Serialise(const RegionToken& token, std::span<const SharedRange> ranges) {
  v1::ClipGradNormRequest request;
  v1::SharedRanges& shared = *request.mutable_shared();
  shared.set_region(token.data(), token.size());
  shared.mutable_offset()->Reserve(static_cast<int>(ranges.size()));
  shared.mutable_length()->Reserve(static_cast<int>(ranges.size()));
  for (const SharedRange& range : ranges) {
    shared.add_offset(range.offset);
    shared.add_length(range.length);
  }
  const grpc::Slice bytes(request.SerializeAsString());
  return grpc::ByteBuffer(&bytes, 1);
}

}  // namespace

std::vector<RangesMessage> SerialiseRanges(const RegionToken& token,
                                           std::span<const SharedRange> ranges,
                                           uint64_t max_message_bytes) {
  const uint64_t fitting =
      max_message_bytes > kOtherBytes ? (max_message_bytes - kOtherBytes) / kRangeBytes : 0;
  const uint64_t most = std::clamp<uint64_t>(fitting, 1, kMaxRanges);
  std::vector<RangesMessage> messages;
  while (!ranges.empty()) {
    const auto some = ranges.first(std::min<uint64_t>(most, ranges.size()));
    RangesMessage& message = messages.emplace_back();
    message.message = Serialise(token, some);
    for (const SharedRange& range : some) message.bytes += range.length;
    ranges = ranges.subspan(some.size());
  }
  return messages;
}

OutgoingRanges::OutgoingRanges(std::span<const RangesMessage> messages) : messages_(messages) {
  for (const RangesMessage& message : messages) total_bytes_ += message.bytes;
}

grpc::ByteBuffer OutgoingRanges::Next() {
  const RangesMessage& next = messages_[sent_++];
  cut_bytes_ += next.bytes;
  return next.message;
}

}  // namespace gradclip
