// The golden cases of tests/data/conformance, parsed. What each field means: the README there.
#ifndef GRADCLIP_TESTS_MODEL_GOLDEN_H_
#define GRADCLIP_TESTS_MODEL_GOLDEN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gradclip/dtype.h"

namespace gradclip {

struct GoldenTensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::string bytes;          // little-endian elements
  std::string torch_clipped;  // what PyTorch made of them; empty where it gave nothing
};

struct GoldenCase {
  std::string name;
  double norm_type = 2;
  double max_norm = 0;
  bool error_if_nonfinite = false;
  std::vector<GoldenTensor> tensors;
  std::optional<double> exact_total_norm;
  std::optional<double> torch_total_norm;
  bool torch_raises = false;
};

std::vector<GoldenCase> ReadGoldenCases();

// Whether PyTorch's figures of this case are a measure: they are there, and its arithmetic neither
// overflowed nor underflowed.
bool TorchIsRight(const GoldenCase& golden);

// The relative precision of PyTorch's own arithmetic in this case: that of the coarsest type in it,
// as it rounds every tensor's norm to the tensor's type.
double TorchEpsilon(const GoldenCase& golden);

// A norm, loss and coefficient of tests/data/gradients, by file stem ("step-090").
struct GoldenGradient {
  double total_norm = 0;
  double max_norm = 0;
  double coefficient = 0;
};
GoldenGradient ReadGoldenGradient(const std::string& stem);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_MODEL_GOLDEN_H_
