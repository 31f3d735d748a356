// Gradients of all kinds of tensors, in which norms of blocks, tensors and policies can go wrong.
#ifndef GRADCLIP_TESTS_SERVER_SESSION_GRADIENTS_H_
#define GRADCLIP_TESTS_SERVER_SESSION_GRADIENTS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gradclip/v1/gradclip.pb.h"
#include "tests/server/session/session_fixture.h"

namespace gradclip {

inline size_t SizeOfElement(const v1::TensorSpec& tensor) {
  return ElementSize(static_cast<DType>(tensor.dtype()));
}

inline size_t CountElements(const v1::TensorSpec& tensor) {
  size_t elements = 1;
  for (const int64_t extent : tensor.shape()) elements *= extent;
  return elements;
}

struct Case {
  v1::ClipGradNormStart start;
  std::string bytes;
};

// Tensors of these shapes in all dtypes, some of them replicas.
inline Case MakeCase(const std::vector<std::vector<int64_t>>& shapes, uint64_t seed,
                     double norm_type, bool per_tensor, bool nonfinite) {
  std::mt19937_64 random(seed);
  const std::vector<v1::DType> dtypes = {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT64,
                                         v1::DTYPE_FLOAT16};
  Case made;
  for (size_t i = 0; i < shapes.size(); ++i) {
    v1::TensorSpec tensor = TensorOf(dtypes[(i + seed) % 4], shapes[i], "t" + std::to_string(i));
    tensor.set_replica(i % 5 == 4);
    *made.start.add_tensors() = tensor;
    const auto elements = static_cast<int64_t>(CountElements(tensor));
    for (int64_t j = 0; j < elements; ++j) {
      // Any sign, exponents near 1, any mantissa; or NaN and infinity.
      const uint64_t bits = random();
      const bool odd = nonfinite && bits % 50'021 == 7;
      switch (tensor.dtype()) {
        case v1::DTYPE_FLOAT32:
          made.bytes += Bytes<uint32_t>({static_cast<uint32_t>(
              odd ? 0x7f800000 | (bits >> 40 & 1) : (bits & 0x807fffff) | 0x3f800000)});
          break;
        case v1::DTYPE_BFLOAT16:
          made.bytes +=
              Bytes<uint16_t>({static_cast<uint16_t>(odd ? 0x7f80 : (bits & 0x807f) | 0x3f80)});
          break;
        case v1::DTYPE_FLOAT16:
          made.bytes +=
              Bytes<uint16_t>({static_cast<uint16_t>(odd ? 0xfc00 : (bits & 0x83ff) | 0x3c00)});
          break;
        default:
          made.bytes += Bytes<uint64_t>(
              {odd ? 0x7ff0000000000001 : (bits & 0x800fffffffffffff) | 0x3ff0000000000000});
      }
    }
  }
  made.start.mutable_norm()->set_norm_type(norm_type);
  made.start.mutable_norm()->set_per_tensor(per_tensor);
  made.start.mutable_norm()->set_pre_scale(0.5);
  made.start.set_max_norm(1);
  made.start.set_nonfinite(nonfinite ? v1::NONFINITE_ZERO : v1::NONFINITE_PROPAGATE);
  return made;
}

inline Case AllKinds(uint64_t seed, double norm_type, bool per_tensor, bool nonfinite) {
  return MakeCase({{0},
                   {3},
                   {4096},
                   {70'001},
                   {},
                   {2, 0},
                   {8192},
                   {31},
                   {12'305},
                   {300'000},
                   {5, 7, 11},
                   {100'000},
                   {64},
                   {0, 0}},
                  seed, norm_type, per_tensor, nonfinite);
}

// Byte offsets of the gradient at which an element begins, and that element's size.
inline std::vector<std::pair<size_t, size_t>> SomeElementStarts(const Case& made,
                                                                std::mt19937_64& random,
                                                                int count) {
  std::vector<std::pair<size_t, size_t>> starts;
  size_t begin = 0;
  for (const v1::TensorSpec& tensor : made.start.tensors()) {
    const size_t size = SizeOfElement(tensor);
    const size_t elements = CountElements(tensor);
    for (int i = 0; i < count && elements > 0; ++i) {
      starts.emplace_back(begin + random() % elements * size, size);
      if (i == 0) starts.back().first = begin;
    }
    begin += elements * size;
  }
  std::sort(starts.begin(), starts.end());
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  return starts;
}

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SESSION_GRADIENTS_H_
