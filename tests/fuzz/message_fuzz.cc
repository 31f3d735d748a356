// The wire codec against protobuf: the same bytes, in any pieces, mean the same to both.
#include <algorithm>
#include <cstdint>
#include <string>

#include "gradclip/v1/gradclip.pb.h"
#include "server/wire/message.h"
#include "tests/fuzz/fuzz.h"

namespace gradclip {
namespace {

// The first byte says how long the pieces are; 0: one piece.
void Check(std::string_view input) {
  if (input.empty()) return;
  const size_t piece_bytes = static_cast<uint8_t>(input[0]);
  const std::string_view message = input.substr(1);
  Pieces pieces;
  for (size_t at = 0; at < message.size(); at += std::max<size_t>(piece_bytes, 1)) {
    pieces.push_back(std::as_bytes(
        std::span(message.substr(at, piece_bytes == 0 ? std::string_view::npos : piece_bytes))));
    if (piece_bytes == 0) break;
  }

  v1::ClipGradNormRequest parsed;
  const bool valid = parsed.ParseFromArray(message.data(), static_cast<int>(message.size()));
  if (StripDataHeader(pieces)) {
    FUZZ_CHECK(valid && parsed.has_data());
    std::string payload;
    for (const auto& piece : pieces) {
      payload.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    }
    FUZZ_CHECK(payload == parsed.data());
  }

  const DeclarationLimits limits = {.max_tensors = 8, .max_dimensions = 4};
  const absl::StatusOr<uint64_t> bound = BoundParsedBytes(message, limits);
  if (valid) {
    FUZZ_CHECK(bound.ok() || absl::IsResourceExhausted(bound.status()));
    if (bound.ok()) {
      FUZZ_CHECK(*bound + sizeof(parsed) + sizeof(v1::ClipGradNormStart) + 256 >=
                 parsed.SpaceUsedLong());
      FUZZ_CHECK(parsed.start().tensors_size() <= 8);
      for (const auto& tensor : parsed.start().tensors()) FUZZ_CHECK(tensor.shape_size() <= 4);
    }
  }
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
