// The element types of a gradient. Constants and pure functions.
#ifndef GRADCLIP_DTYPE_H_
#define GRADCLIP_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace gradclip {

// Little-endian IEEE 754 binary32, binary16, bfloat16 and binary64. Values as in the contract's
// DType.
enum class DType : uint8_t { kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3, kFloat64 = 4 };

// Bytes of one element.
constexpr size_t ElementSize(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat64:
      return 8;
  }
  return 0;
}

// "F32", "F16", "BF16", "F64": as .safetensors files name them.
constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "F32";
    case DType::kFloat16:
      return "F16";
    case DType::kBFloat16:
      return "BF16";
    case DType::kFloat64:
      return "F64";
  }
  return "?";
}

}  // namespace gradclip

#endif  // GRADCLIP_DTYPE_H_
