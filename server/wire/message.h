// The hot path's view of a serialised request: where its `data` lies, and what a `start` would cost
// to parse. No gRPC types; pure functions over bytes.
//
// ComputeNormRequest and ClipGradNormRequest look alike on the wire: one payload of start = 1,
// data = 2, shared = 3, each length-delimited.
#ifndef GRADCLIP_SERVER_WIRE_MESSAGE_H_
#define GRADCLIP_SERVER_WIRE_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"

namespace gradclip {

// A message's bytes in pieces, in order; empty pieces are allowed. The bytes are somebody else's.
using Pieces = absl::InlinedVector<std::span<const std::byte>, 24>;

// Where the message is one `data` field and nothing else, drops the header from the pieces, leaves
// the payload, and returns true. Otherwise returns false and leaves the pieces as they are; the
// message is then for protobuf to parse.
bool StripDataHeader(Pieces& message);

// What a request that is not plain data may declare.
struct DeclarationLimits {
  uint64_t max_tensors = 131072;  // --max-tensors
  uint64_t max_dimensions = 64;   // --max-dimensions, of one tensor
  uint64_t max_ranges = 131072;   // --max-ranges
};

// Walks a serialised request without building anything, so that a few hostile megabytes cannot
// become a hundred. Returns an upper bound of the bytes that the parsed message and what is made of
// it hold. RESOURCE_EXHAUSTED over a limit; INVALID_ARGUMENT where it is no protobuf message.
absl::StatusOr<uint64_t> BoundParsedBytes(std::string_view request,
                                          const DeclarationLimits& limits);

// Bytes of the header that stands before `data_bytes` of data in a response message, written to
// `header`, which has room for kMaxDataHeaderBytes.
inline constexpr size_t kMaxDataHeaderBytes = 11;
size_t WriteDataHeader(uint64_t data_bytes, std::byte* header);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_WIRE_MESSAGE_H_
