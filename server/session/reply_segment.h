// Part of a reply's gradient. A value type.
#ifndef GRADCLIP_SERVER_SESSION_REPLY_SEGMENT_H_
#define GRADCLIP_SERVER_SESSION_REPLY_SEGMENT_H_

#include <cstddef>
#include <memory>
#include <span>

namespace gradclip {

// Whole elements, at most ArenaBuffer::kSegmentBytes.
struct ReplySegment {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // of the bytes; hold it while they are in use
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_REPLY_SEGMENT_H_
