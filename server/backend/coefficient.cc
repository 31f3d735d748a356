#include <cfloat>
#include <cmath>

#include "server/backend/backend.h"
#include "server/backend/floating_point_environment.h"

namespace gradclip {
namespace {

// With u the distance from 1 to the next smaller number of the format, coefficients in
// [1 - u / 2, 1 + u] round to 1 (halves to even). F32 and F64 elements are multiplied by the
// rounded coefficient, so then by 1.
//
// F16 and BF16 elements are multiplied in float by nearly the coefficient itself, and the product
// is rounded. Take an element x = m * 2^e, 1 <= m < 2, whose neighbours are 2u * 2^e away (u * 2^e
// below where m = 1). A coefficient 1 - d moves it by m * d * 2^e, which for d <= u / 2 is less
// than u * 2^e, half the way to a neighbour; for m = 1 it is at most half the way to the nearer
// one, and a tie goes back to x, whose fraction is even. The same holds for 1 + d, d <= u / 2, but
// no further: at 1 + u, which rounds to 1, an element with m = 1.5 moves to its neighbour. Hence
// the bound is u / 2 on both sides. Subnormal elements move less against their distance, the
// largest finite element stays below the half-way point to infinity, and the float product, rounded
// before, can't pass those half-way points as they are floats.
GRADCLIP_OUT_OF_LINE bool IsWithinHalfOfU(const double& coefficient, double u) {
  return std::fabs(coefficient - 1) <= u / 2;
}

GRADCLIP_OUT_OF_LINE bool RoundsToOneInFloat(const double& coefficient) {
  return static_cast<float>(coefficient) == 1;
}

GRADCLIP_OUT_OF_LINE bool IsOutsideFloat(const double& coefficient) {
  const double magnitude = std::fabs(coefficient);
  return (magnitude < 0x1p-126 && magnitude != 0) || magnitude > FLT_MAX;
}

}  // namespace

bool LeavesUnchanged(DType dtype, double coefficient) {
  const FloatingPointEnvironment environment;
  switch (dtype) {
    case DType::kFloat32:
      return RoundsToOneInFloat(coefficient);
    case DType::kFloat16:
      return IsWithinHalfOfU(coefficient, 0x1p-11);
    case DType::kBFloat16:
      return IsWithinHalfOfU(coefficient, 0x1p-8);
    case DType::kFloat64:
      break;
  }
  return coefficient == 1;
}

bool ScalesInDouble(double coefficient) {
  const FloatingPointEnvironment environment;
  return IsOutsideFloat(coefficient);
}

}  // namespace gradclip
