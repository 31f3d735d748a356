#include "server/wire/message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>

#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr uint8_t kDataTag = (2 << 3) | 2;  // field 2, length-delimited, in both directions
constexpr int kMaxLengthBytes = 5;          // protobuf refuses longer ones too

// Upper bounds of what protobuf, CallSpec and SharedPart hold for one thing of a message, in bytes:
// a TensorSpec with its place in the repeated field, a TensorDeclaration and a Piece; one int64 of
// a repeated field that doubles as it grows; a range's offset or its length, with half of its place
// among all ranges and half of a Piece and a Task; a field protobuf does not know, kept aside.
constexpr uint64_t kTensorBytes = 256;
constexpr uint64_t kDimensionBytes = 16;
constexpr uint64_t kRangeFieldBytes = 160;
constexpr uint64_t kOtherFieldBytes = 64;
// For each byte on the wire: text, twice where it is copied; and what may hold messages or groups
// of unknown fields, each of which may be an empty string of two bytes on the wire and, as protobuf
// keeps it, 32 in a string and 16 in a vector that doubles as it grows.
constexpr uint64_t kTextByteBytes = 2;
constexpr uint64_t kNestedByteBytes = 64;

// Reads the bytes of several pieces one by one.
class PieceReader {
 public:
  explicit PieceReader(const Pieces& pieces) : pieces_(pieces) {}

  std::optional<uint8_t> Next() {
    while (piece_ < pieces_.size() && at_ == pieces_[piece_].size()) {
      ++piece_;
      at_ = 0;
    }
    if (piece_ == pieces_.size()) return std::nullopt;
    ++count_;
    return static_cast<uint8_t>(pieces_[piece_][at_++]);
  }

  size_t count() const { return count_; }

 private:
  const Pieces& pieces_;
  size_t piece_ = 0;
  size_t at_ = 0;
  size_t count_ = 0;
};

// Bounds one request; see BoundParsedBytes().
class StartScanner {
 public:
  StartScanner(std::string_view request, const DeclarationLimits& limits)
      : limits_(limits),
        input_(reinterpret_cast<const uint8_t*>(request.data()), static_cast<int>(request.size())) {
  }

  absl::StatusOr<uint64_t> Scan() {
    if (!ScanRequest()) {
      if (!refusal_.ok()) return refusal_;
      return absl::InvalidArgumentError(
          "a message is not a valid protobuf message of the contract's request type");
    }
    return bytes_;
  }

 private:
  // Each returns false where the bytes are malformed or a limit is passed (refusal_).
  bool ScanRequest() {
    while (const uint32_t tag = input_.ReadTag()) {
      if (tag == Tag(1)) {
        if (!Nested([&] { return ScanStart(); })) return false;
      } else if (tag == Tag(3)) {
        if (!Nested([&] { return ScanShared(); })) return false;
      } else if (!Weigh(tag, tag == Tag(2) ? kTextByteBytes : kNestedByteBytes)) {
        return false;
      }
    }
    return input_.ConsumedEntireMessage();
  }

  bool ScanStart() {
    while (const uint32_t tag = input_.ReadTag()) {
      if (tag == Tag(1)) {
        if (++tensors_ > limits_.max_tensors) {
          refusal_ = absl::ResourceExhaustedError(absl::StrFormat(
              "tensors: more than %d are declared, which is the limit (--max-tensors)",
              limits_.max_tensors));
          return false;
        }
        bytes_ += kTensorBytes;
        dimensions_ = 0;
        if (!Nested([&] { return ScanTensor(); })) return false;
      } else if (!Weigh(tag, kNestedByteBytes)) {
        return false;
      }
    }
    return input_.ConsumedEntireMessage();
  }

  bool ScanShared() {
    uint64_t fields = 0;  // offsets and lengths, packed or not
    while (const uint32_t tag = input_.ReadTag()) {
      if (tag == Tag(2) || tag == Tag(3)) {
        uint32_t length = 0;
        if (!input_.ReadVarint32(&length) || length > INT32_MAX) return false;
        if (!input_.Skip(static_cast<int>(length))) return false;
        fields += length / sizeof(uint64_t);
      } else if (tag == WireFormatLite::MakeTag(2, WireFormatLite::WIRETYPE_FIXED64) ||
                 tag == WireFormatLite::MakeTag(3, WireFormatLite::WIRETYPE_FIXED64)) {
        if (!input_.Skip(sizeof(uint64_t))) return false;
        ++fields;
      } else if (!Weigh(tag, kNestedByteBytes)) {
        return false;
      }
    }
    bytes_ += fields * kRangeFieldBytes;
    if (fields > 2 * limits_.max_ranges) {
      refusal_ = absl::ResourceExhaustedError(
          absl::StrFormat("shared: more than %d ranges, which is the limit (--max-ranges). Lay "
                          "tensors side by side: what is adjacent in memory needs one range",
                          limits_.max_ranges));
      return false;
    }
    return input_.ConsumedEntireMessage();
  }

  bool ScanTensor() {
    while (const uint32_t tag = input_.ReadTag()) {
      if (tag == Tag(3)) {  // packed extents
        if (!Nested([&] { return ScanPackedExtents(); })) return false;
      } else {
        if (tag == WireFormatLite::MakeTag(3, WireFormatLite::WIRETYPE_VARINT)) {
          if (!CountDimension()) return false;
        }
        if (!Weigh(tag, tag == Tag(1) ? kTextByteBytes : kNestedByteBytes)) return false;
      }
    }
    return input_.ConsumedEntireMessage();
  }

  bool ScanPackedExtents() {
    while (input_.BytesUntilLimit() > 0) {
      uint64_t extent = 0;
      if (!CountDimension() || !input_.ReadVarint64(&extent)) return false;
    }
    return true;
  }

  bool CountDimension() {
    bytes_ += kDimensionBytes;
    if (++dimensions_ <= limits_.max_dimensions) return true;
    refusal_ = absl::ResourceExhaustedError(absl::StrFormat(
        "tensor #%d: shape has more than %d dimensions, which is the limit (--max-dimensions)",
        tensors_ - 1, limits_.max_dimensions));
    return false;
  }

  // A field that is skipped and only weighed.
  bool Weigh(uint32_t tag, uint64_t bytes_per_byte) {
    const int before = input_.CurrentPosition();
    if (!WireFormatLite::SkipField(&input_, tag)) return false;
    const uint64_t length = input_.CurrentPosition() - before;
    bytes_ += kOtherFieldBytes + length * bytes_per_byte;
    return true;
  }

  template <typename Scan>
  bool Nested(Scan scan) {
    uint32_t length = 0;
    if (!input_.ReadVarint32(&length) || length > INT32_MAX) return false;
    if (static_cast<int>(length) > input_.BytesUntilLimit() && input_.BytesUntilLimit() >= 0) {
      return false;
    }
    const CodedInputStream::Limit limit = input_.PushLimit(static_cast<int>(length));
    if (!scan() || input_.BytesUntilLimit() != 0) return false;
    input_.PopLimit(limit);
    return true;
  }

  static constexpr uint32_t Tag(int field) {
    return static_cast<uint32_t>(field) << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
  }

  const DeclarationLimits& limits_;
  CodedInputStream input_;
  uint64_t tensors_ = 0;
  uint64_t dimensions_ = 0;  // of the tensor at hand
  uint64_t bytes_ = 0;
  absl::Status refusal_;
};

}  // namespace

bool StripDataHeader(Pieces& message) {
  PieceReader reader(message);
  if (reader.Next() != kDataTag) return false;
  uint64_t length = 0;
  for (int i = 0;; ++i) {
    const std::optional<uint8_t> byte = reader.Next();
    if (!byte.has_value() || i == kMaxLengthBytes) return false;
    length |= uint64_t{*byte & 0x7fu} << (7 * i);
    if ((*byte & 0x80) == 0) break;
  }
  uint64_t total = 0;
  for (const auto& piece : message) total += piece.size();
  if (length != total - reader.count()) return false;

  size_t header = reader.count();
  for (auto& piece : message) {
    const size_t dropped = std::min(header, piece.size());
    piece = piece.subspan(dropped);
    header -= dropped;
  }
  return true;
}

absl::StatusOr<uint64_t> BoundParsedBytes(std::string_view request,
                                          const DeclarationLimits& limits) {
  return StartScanner(request, limits).Scan();
}

size_t WriteDataHeader(uint64_t data_bytes, std::byte* header) {
  auto* bytes = reinterpret_cast<uint8_t*>(header);
  bytes[0] = kDataTag;
  return google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(data_bytes, bytes + 1) -
         bytes;
}

}  // namespace gradclip
