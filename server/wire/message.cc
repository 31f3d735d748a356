#include "server/wire/message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>

#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

using google::protobuf::internal::WireFormatLite;

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

// Reads protobuf's wire format from contiguous bytes. Each method returns false where they are
// malformed, and is then not to be called again.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}

  bool done() const { return rest_.empty(); }
  size_t rest_bytes() const { return rest_.size(); }

  bool Varint(uint64_t* value) {
    *value = 0;
    for (size_t i = 0; i < kMaxVarintBytes && i < rest_.size(); ++i) {
      const auto byte = static_cast<uint8_t>(rest_[i]);
      *value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        return true;
      }
    }
    return false;
  }

  bool Tag(uint32_t* tag) {
    uint64_t value = 0;
    if (!Varint(&value)) return false;
    *tag = static_cast<uint32_t>(value);  // as protobuf, which drops what is beyond 32 bits
    return WireFormatLite::GetTagFieldNumber(*tag) != 0;
  }

  // What is length-delimited.
  bool Delimited(std::string_view* bytes) {
    uint64_t length = 0;
    if (!Varint(&length) || length > rest_.size()) return false;
    *bytes = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }

  // The value of the field whose tag was read last.
  bool Skip(uint32_t tag, int depth = 0) {
    uint64_t varint = 0;
    std::string_view bytes;
    switch (WireFormatLite::GetTagWireType(tag)) {
      case WireFormatLite::WIRETYPE_VARINT:
        return Varint(&varint);
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        return Delimited(&bytes);
      case WireFormatLite::WIRETYPE_FIXED32:
        return Drop(sizeof(uint32_t));
      case WireFormatLite::WIRETYPE_FIXED64:
        return Drop(sizeof(uint64_t));
      case WireFormatLite::WIRETYPE_START_GROUP:
        return depth < kMaxDepth && SkipGroup(WireFormatLite::GetTagFieldNumber(tag), depth + 1);
      default:
        return false;
    }
  }

 private:
  static constexpr size_t kMaxVarintBytes = 10;
  static constexpr int kMaxDepth = 100;  // protobuf's own

  bool Drop(size_t bytes) {
    if (bytes > rest_.size()) return false;
    rest_.remove_prefix(bytes);
    return true;
  }

  bool SkipGroup(int field, int depth) {
    uint32_t tag = 0;
    while (Tag(&tag)) {
      if (WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_END_GROUP) {
        return WireFormatLite::GetTagFieldNumber(tag) == field;
      }
      if (!Skip(tag, depth)) return false;
    }
    return false;
  }

  std::string_view rest_;
};

// Bounds one request; see BoundParsedBytes().
class StartScanner {
 public:
  explicit StartScanner(const DeclarationLimits& limits) : limits_(limits) {}

  absl::StatusOr<uint64_t> Scan(std::string_view request) {
    if (!ScanRequest(request)) {
      if (!refusal_.ok()) return refusal_;
      return absl::InvalidArgumentError(
          "a message is not a valid protobuf message of the contract's request type");
    }
    return bytes_;
  }

 private:
  // Each returns false where the bytes are malformed or a limit is passed (refusal_).
  bool ScanRequest(std::string_view request) {
    return ForEachField(request, [this](WireReader& in, uint32_t tag) {
      std::string_view nested;
      if (tag == Tag(1)) return in.Delimited(&nested) && ScanStart(nested);
      if (tag == Tag(3)) return in.Delimited(&nested) && ScanShared(nested);
      return Weigh(in, tag, tag == Tag(2) ? kTextByteBytes : kNestedByteBytes);
    });
  }

  bool ScanStart(std::string_view start) {
    return ForEachField(start, [this](WireReader& in, uint32_t tag) {
      if (tag != Tag(1)) return Weigh(in, tag, kNestedByteBytes);
      if (++tensors_ > limits_.max_tensors) {
        refusal_ = absl::ResourceExhaustedError(
            absl::StrFormat("tensors: more than %d are declared, which is the limit "
                            "(--max-tensors)",
                            limits_.max_tensors));
        return false;
      }
      bytes_ += kTensorBytes;
      dimensions_ = 0;
      std::string_view tensor;
      return in.Delimited(&tensor) && ScanTensor(tensor);
    });
  }

  bool ScanShared(std::string_view shared) {
    uint64_t fields = 0;  // offsets and lengths, packed or not
    const bool valid = ForEachField(shared, [&](WireReader& in, uint32_t tag) {
      std::string_view packed;
      if (tag == Tag(2) || tag == Tag(3)) {
        if (!in.Delimited(&packed)) return false;
        fields += packed.size() / sizeof(uint64_t);
        return true;
      }
      if (tag == WireFormatLite::MakeTag(2, WireFormatLite::WIRETYPE_FIXED64) ||
          tag == WireFormatLite::MakeTag(3, WireFormatLite::WIRETYPE_FIXED64)) {
        ++fields;
        return in.Skip(tag);
      }
      return Weigh(in, tag, kNestedByteBytes);
    });
    bytes_ += fields * kRangeFieldBytes;
    if (fields > 2 * limits_.max_ranges) {
      refusal_ = absl::ResourceExhaustedError(
          absl::StrFormat("shared: more than %d ranges, which is the limit (--max-ranges). Lay "
                          "tensors side by side: what is adjacent in memory needs one range",
                          limits_.max_ranges));
      return false;
    }
    return valid;
  }

  bool ScanTensor(std::string_view tensor) {
    return ForEachField(tensor, [this](WireReader& in, uint32_t tag) {
      std::string_view packed;
      if (tag == Tag(3)) return in.Delimited(&packed) && ScanPackedExtents(packed);
      if (tag == WireFormatLite::MakeTag(3, WireFormatLite::WIRETYPE_VARINT) && !CountDimension()) {
        return false;
      }
      return Weigh(in, tag, tag == Tag(1) ? kTextByteBytes : kNestedByteBytes);
    });
  }

  bool ScanPackedExtents(std::string_view packed) {
    WireReader in(packed);
    uint64_t extent = 0;
    while (!in.done()) {
      if (!CountDimension() || !in.Varint(&extent)) return false;
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
  bool Weigh(WireReader& in, uint32_t tag, uint64_t bytes_per_byte) {
    const size_t before = in.rest_bytes();
    if (!in.Skip(tag)) return false;
    bytes_ += kOtherFieldBytes + (before - in.rest_bytes()) * bytes_per_byte;
    return true;
  }

  // take(in, tag) takes the field's value.
  template <typename Take>
  static bool ForEachField(std::string_view message, Take take) {
    WireReader in(message);
    uint32_t tag = 0;
    while (!in.done()) {
      if (!in.Tag(&tag) || !take(in, tag)) return false;
    }
    return true;
  }

  static constexpr uint32_t Tag(int field) {
    return static_cast<uint32_t>(field) << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
  }

  const DeclarationLimits& limits_;
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
  return StartScanner(limits).Scan(request);
}

size_t WriteDataHeader(uint64_t data_bytes, std::byte* header) {
  auto* bytes = reinterpret_cast<uint8_t*>(header);
  bytes[0] = kDataTag;
  return google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(data_bytes, bytes + 1) -
         bytes;
}

}  // namespace gradclip
