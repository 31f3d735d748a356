// Elements and what a coefficient makes of them, slowly and plainly, one by one. Fuzz targets and
// end-to-end tests hold the real thing against it.
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

// The element times the coefficient, as Backend::Scale() defines it. A NaN is any NaN.
std::string ScaleElement(DType dtype, std::string_view element, double coefficient);

// The values of the tensor that starts `gradient`, from which its bytes are taken away.
std::vector<double> TakeTensor(const v1::TensorSpec& tensor, std::string_view& gradient);

// The gradient times the coefficient of a result; zeros where it was skipped and the coefficient is
// 0.
std::string ModelScale(const v1::ClipGradNormStart& start, const v1::ClipResult& result,
                       std::string_view gradient);

// Equal elements; one NaN is as good as another.
bool SameElements(const v1::ClipGradNormStart& start, std::string_view a, std::string_view b);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_MODEL_MODEL_H_
