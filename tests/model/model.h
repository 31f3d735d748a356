// What a call must answer, computed slowly and plainly: element by element, in long double, over
// the whole gradient at once. Fuzz targets and end-to-end tests hold the real thing against it.
#ifndef GRADCLIP_TESTS_MODEL_MODEL_H_
#define GRADCLIP_TESTS_MODEL_MODEL_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gradclip/dtype.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {

// The value of the element that starts `bytes`.
double Decode(DType dtype, std::string_view bytes);

// `value` as an element: rounded once to nearest even. Not for F64, which is `value`.
std::string EncodeNarrow(DType dtype, long double value);

// The p-norm of the counted tensors, without pre_scale; NaN and infinity as IEEE 754 has them.
long double ModelNorm(const v1::ClipGradNormStart& start, std::string_view gradient);

// The gradient times the coefficient of a result.
std::string ModelScale(const v1::ClipGradNormStart& start, const v1::ClipResult& result,
                       std::string_view gradient);

// Bytes that the tensors declare. REQUIRES: valid dtypes, no negative extent, small products.
uint64_t DeclaredBytes(const v1::ClipGradNormStart& start);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_MODEL_MODEL_H_
