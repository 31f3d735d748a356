// ParseNpy(): a magic word, a version, the length of the header, the header (a Python dictionary in
// text), then the elements.
#include <charconv>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/files/layout.h"

namespace gradclip {
namespace {

constexpr absl::string_view kMagic = "\x93NUMPY";

// Reads the few forms of Python text that numpy writes, from the front of `text_`.
class Reader {
 public:
  explicit Reader(absl::string_view text) : text_(text) {}

  // Takes `token` where it comes next, after spaces.
  bool Take(absl::string_view token) {
    SkipSpaces();
    return absl::ConsumePrefix(&text_, token);
  }

  bool AtEnd() {
    SkipSpaces();
    return text_.empty();
  }

  // 'text' or "text", with no escapes: numpy writes none in what can be clipped.
  bool TakeString(absl::string_view& value) {
    SkipSpaces();
    if (text_.empty() || (text_.front() != '\'' && text_.front() != '"')) return false;
    const size_t end = text_.find(text_.front(), 1);
    if (end == absl::string_view::npos) return false;
    value = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return true;
  }

  // A tuple of whole numbers: (), (3,), (3, 4).
  bool TakeShape(std::vector<int64_t>& shape) {
    if (!Take("(")) return false;
    while (!Take(")")) {
      int64_t dimension = 0;
      SkipSpaces();
      const auto [end, error] =
          std::from_chars(text_.data(), text_.data() + text_.size(), dimension);
      if (error != std::errc() || dimension < 0) return false;
      text_.remove_prefix(static_cast<size_t>(end - text_.data()));
      shape.push_back(dimension);
      const bool comma = Take(",");
      // (3) is a number in Python, not a tuple.
      if (!comma && (shape.size() == 1 || !Take(")"))) return false;
      if (!comma) return true;
    }
    return true;
  }

 private:
  void SkipSpaces() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\n')) {
      text_.remove_prefix(1);
    }
  }

  absl::string_view text_;
};

struct Header {
  absl::string_view descr;
  std::vector<int64_t> shape;
};

absl::Status BadHeader(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("the header is not numpy's: ", why));
}

absl::StatusOr<Header> ParseHeader(absl::string_view text) {
  Header header;
  bool descr = false, order = false, shape = false;
  Reader reader(text);
  if (!reader.Take("{")) return BadHeader("it does not start with {");
  while (!reader.Take("}")) {
    absl::string_view key;
    if (!reader.TakeString(key) || !reader.Take(":")) return BadHeader("a key is missing");
    if (key == "descr" && !descr) {
      if (!reader.TakeString(header.descr)) {
        return absl::InvalidArgumentError(
            "its elements are records, which can't be clipped; save each field on its own");
      }
      descr = true;
    } else if (key == "fortran_order" && !order) {
      if (!reader.Take("True") && !reader.Take("False")) {
        return BadHeader("fortran_order must be True or False");
      }
      order = true;
    } else if (key == "shape" && !shape) {
      if (!reader.TakeShape(header.shape)) {
        return BadHeader("shape must be a tuple of whole numbers from 0 to 2^63 - 1");
      }
      shape = true;
    } else {
      return BadHeader("its keys must be descr, fortran_order and shape, each once");
    }
    if (!reader.Take(",")) {
      if (!reader.Take("}")) return BadHeader("it does not end with }");
      break;
    }
  }
  if (!reader.AtEnd()) return BadHeader("text follows its }");
  if (!descr || !order || !shape) {
    return BadHeader("its keys must be descr, fortran_order and shape, each once");
  }
  return header;
}

absl::StatusOr<DType> ParseDType(absl::string_view descr) {
  if (descr == "<f4") return DType::kFloat32;
  if (descr == "<f2") return DType::kFloat16;
  if (descr == "<f8") return DType::kFloat64;
  if (descr == ">f4" || descr == ">f2" || descr == ">f8") {
    return absl::InvalidArgumentError(
        absl::StrCat("its dtype ", descr,
                     " is big-endian, which is not supported; save it with array.astype(\"<",
                     descr.substr(1), "\")"));
  }
  if (descr == "<V2" || descr == "|V2") {
    return absl::InvalidArgumentError(
        absl::StrCat("its dtype ", descr,
                     " only says that elements take 2 bytes (bfloat16 is saved like this, and so "
                     "are other types); save bfloat16 in a .safetensors file"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("it has dtype ", descr.substr(0, 32),
                   ", which can't be clipped; a gradient's are <f4, <f2 and <f8"));
}

}  // namespace

absl::StatusOr<TensorPlace> ParseNpy(std::span<const std::byte> file, std::string name) {
  const absl::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (!absl::StartsWith(text, kMagic)) {
    return absl::InvalidArgumentError("it does not start as a .npy file does");
  }
  const size_t version_at = kMagic.size();
  const size_t length_at = version_at + 2;
  const unsigned major = text.size() > version_at ? std::to_integer<unsigned>(file[version_at]) : 1;
  const unsigned minor =
      text.size() > version_at + 1 ? std::to_integer<unsigned>(file[version_at + 1]) : 0;
  if (major < 1 || major > 3 || minor != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("its .npy version is ", major, ".", minor, "; known are 1.0, 2.0 and 3.0"));
  }
  // Version 1.0 has a length of 16 bits, the later ones of 32.
  const size_t header_at = length_at + (major == 1 ? 2 : 4);
  if (text.size() < header_at) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file ends after ", text.size(), " bytes, within the header's length"));
  }
  uint64_t header_bytes = 0;
  for (size_t at = header_at; at > length_at; --at) {
    header_bytes = header_bytes << 8 | std::to_integer<uint64_t>(file[at - 1]);
  }
  if (header_bytes > text.size() - header_at) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header takes ", header_bytes, " bytes, but the file holds only ",
                     text.size() - header_at, " after its length; it may be cut off"));
  }
  absl::StatusOr<Header> header = ParseHeader(text.substr(header_at, header_bytes));
  if (!header.ok()) return header.status();
  absl::StatusOr<DType> dtype = ParseDType(header->descr);
  if (!dtype.ok()) return dtype.status();

  const uint64_t data_bytes = text.size() - header_at - header_bytes;
  const std::optional<uint64_t> bytes = BytesOfShape(header->shape, *dtype);
  if (!bytes.has_value() || *bytes != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape ", ShapeText(header->shape), " of ", header->descr, " takes ",
                     bytes.has_value() ? absl::StrCat(*bytes) : "over 2^63",
                     " bytes, but the file holds ", data_bytes, " after the header"));
  }
  return TensorPlace{std::move(name), *dtype, std::move(header->shape), header_at + header_bytes,
                     *bytes};
}

}  // namespace gradclip
