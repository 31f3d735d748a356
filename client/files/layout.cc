#include "client/files/layout.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace gradclip {

static_assert(std::endian::native == std::endian::little,
              "elements are handed on as they lie in the file, which is little-endian");

std::optional<uint64_t> BytesOfShape(std::span<const int64_t> shape, DType dtype) {
  uint64_t bytes = ElementSize(dtype);
  for (int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes) ||
        bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return std::nullopt;
    }
  }
  return bytes;
}

std::string ShapeText(std::span<const int64_t> shape) {
  constexpr size_t kShown = 16;
  return absl::StrCat("[", absl::StrJoin(shape.first(std::min(kShown, shape.size())), ", "),
                      shape.size() > kShown ? ", ...]" : "]");
}

}  // namespace gradclip
