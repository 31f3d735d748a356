// Where the tensors of a .safetensors or .npy file lie in its bytes. Pure functions of the bytes,
// made for hostile input: they read nothing outside of it, and whatever it holds they answer or
// refuse.
#ifndef GRADCLIP_CLIENT_FILES_LAYOUT_H_
#define GRADCLIP_CLIENT_FILES_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gradclip/dtype.h"

namespace gradclip {

// One tensor's elements: bytes [offset, offset + bytes) of the file, at any alignment.
struct TensorPlace {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // empty: one element
  uint64_t offset = 0;         // bytes from the start of the file
  uint64_t bytes = 0;          // product of the shape * ElementSize(dtype)
};

// The tensors of a .safetensors file in the order of their data (of their names where they are
// empty). The format: https://github.com/huggingface/safetensors. INVALID_ARGUMENT names the
// tensor and the numbers where the header is not that format's, the ranges overlap, leave a hole or
// miss the end of the file, or the dtype can't be clipped.
absl::StatusOr<std::vector<TensorPlace>> ParseSafetensors(std::span<const std::byte> file);

// The array of a .npy file, versions 1.0 to 3.0, under the name given; the file does not hold one.
// The format: numpy.lib.format. Fortran order is taken as it comes (norm and scaling do not depend
// on the order of elements, so the shape is the header's). INVALID_ARGUMENT says what is wrong.
absl::StatusOr<TensorPlace> ParseNpy(std::span<const std::byte> file, std::string name);

// Bytes of a tensor with this shape (none negative); nullopt where they don't fit in an int64.
std::optional<uint64_t> BytesOfShape(std::span<const int64_t> shape, DType dtype);

// "[3, 4]"; of a long shape the first 16 dimensions.
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_FILES_LAYOUT_H_
