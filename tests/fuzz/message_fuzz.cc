// The wire codec against protobuf: the same bytes, in any pieces, mean the same to both.
#include <google/protobuf/stubs/logging.h>

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "gradclip/v1/gradclip.pb.h"
#include "server/wire/message.h"
#include "tests/fuzz/fuzz.h"

namespace gradclip {
namespace {

// The message in pieces of `piece_bytes` (0: one piece), with an empty one in front of each.
Pieces PiecesOf(std::string_view message, size_t piece_bytes) {
  Pieces pieces;
  while (!message.empty()) {
    const std::string_view piece = message.substr(0, piece_bytes == 0 ? message.npos : piece_bytes);
    message.remove_prefix(piece.size());
    pieces.emplace_back();
    pieces.push_back(std::as_bytes(std::span(piece)));
  }
  return pieces;
}

std::string Join(const Pieces& pieces) {
  std::string bytes;
  for (const auto& piece : pieces) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return bytes;
}

// What is taken as data is data to protobuf too, and nothing else is in it; what protobuf would
// write as nothing but data is taken.
template <typename Request>
void CheckStrip(std::string_view message, size_t piece_bytes) {
  Request parsed;
  const bool only_data = parsed.ParseFromArray(message.data(), static_cast<int>(message.size())) &&
                         parsed.has_data() &&
                         parsed.GetReflection()->GetUnknownFields(parsed).empty();
  Pieces pieces = PiecesOf(message, piece_bytes);
  if (StripDataHeader(pieces)) {
    FUZZ_CHECK(only_data && Join(pieces) == parsed.data());
  } else {
    FUZZ_CHECK(Join(pieces) == message);
    FUZZ_CHECK(!only_data || parsed.SerializeAsString() != message);
  }
}

// As every client writes data: the payload comes out as it went in.
template <typename Request>
void CheckCanonical(std::string_view payload, size_t piece_bytes) {
  Request request;
  request.set_data(std::string(payload));
  const std::string message = request.SerializeAsString();
  Pieces pieces = PiecesOf(message, piece_bytes);
  FUZZ_CHECK(StripDataHeader(pieces));
  FUZZ_CHECK(Join(pieces) == payload);
}

// The header that the server writes before the data of a reply is the one that protobuf writes.
void CheckReply(std::string_view payload) {
  v1::ClipGradNormResponse response;
  response.set_data(std::string(payload));
  std::array<std::byte, kMaxDataHeaderBytes> header;
  const size_t header_bytes = WriteDataHeader(payload.size(), header.data());
  const std::string written(reinterpret_cast<const char*>(header.data()), header_bytes);
  FUZZ_CHECK(response.SerializeAsString() == written + std::string(payload));
}

void CheckBound(std::string_view message) {
  v1::ClipGradNormRequest parsed;
  const bool valid = parsed.ParseFromArray(message.data(), static_cast<int>(message.size()));
  const DeclarationLimits limits = {.max_tensors = 8, .max_dimensions = 4};
  const absl::StatusOr<uint64_t> bound = BoundParsedBytes(message, limits);
  if (!valid) return;
  FUZZ_CHECK(bound.ok() || absl::IsResourceExhausted(bound.status()));
  if (!bound.ok()) return;
  FUZZ_CHECK(*bound + sizeof(parsed) + sizeof(v1::ClipGradNormStart) + 256 >=
             parsed.SpaceUsedLong());
  FUZZ_CHECK(parsed.start().tensors_size() <= 8);
  for (const auto& tensor : parsed.start().tensors()) FUZZ_CHECK(tensor.shape_size() <= 4);
}

// The first byte says how long the pieces are; 0: one piece. The rest: the message, and a payload.
void Check(std::string_view input) {
  if (input.empty()) return;
  const google::protobuf::LogSilencer silence;  // most inputs are no message
  const size_t piece_bytes = static_cast<uint8_t>(input[0]);
  const std::string_view message = input.substr(1);
  CheckStrip<v1::ClipGradNormRequest>(message, piece_bytes);
  CheckStrip<v1::ComputeNormRequest>(message, piece_bytes);
  CheckCanonical<v1::ClipGradNormRequest>(message, piece_bytes);
  CheckCanonical<v1::ComputeNormRequest>(message, piece_bytes);
  CheckReply(message);
  CheckBound(message);
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
