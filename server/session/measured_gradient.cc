#include "server/session/measured_gradient.h"

#include "absl/strings/str_cat.h"

namespace gradclip {

MeasuredGradient::MeasuredGradient(const Backend& backend, const CallSpec& spec,
                                   v1::NormResult& result)
    : spec_(spec),
      result_(result),
      norm_(backend, spec.norm_type, spec.per_tensor, spec.rule.pre_scale) {
  if (spec.per_tensor) {
    result.mutable_tensors()->Reserve(static_cast<int>(spec.tensors.size()));
  }
}

void MeasuredGradient::Add(const std::byte* elements, uint64_t count) {
  EnterTensor();
  norm_.Add(elements, count);
  elements_ += count;
}

void MeasuredGradient::AddBlocks(const NormPartial& sum, const TensorSummary& found,
                                 uint64_t count) {
  EnterTensor();
  norm_.AddBlocks(sum, found, count);
  elements_ += count;
}

void MeasuredGradient::AddTensors(const PiecesNorm& measured, size_t first, size_t count) {
  EnterTensor();
  norm_.AddTensors(measured.sum);
  for (const TensorSummary& summary : measured.pieces) LeaveTensor(summary);
  tensor_ = first + count;
  in_tensor_ = false;
}

void MeasuredGradient::EnterTensor() {
  while (tensor_ < spec_.tensors.size()) {
    const TensorDeclaration& tensor = spec_.tensors[tensor_];
    if (!in_tensor_) {
      norm_.BeginTensor(tensor.dtype, /*counted=*/!tensor.replica);
      in_tensor_ = true;
    }
    if (elements_ < tensor.elements) return;
    LeaveTensor(norm_.EndTensor());
  }
}

void MeasuredGradient::LeaveTensor(const TensorSummary& summary) {
  const TensorDeclaration& tensor = spec_.tensors[tensor_];
  if (!tensor.replica && summary.nonfinite > 0) {
    if (result_.nonfinite_elements() == 0) {
      result_.set_first_nonfinite(
          absl::StrCat(tensor.name.empty() ? absl::StrCat("#", tensor_) : tensor.name, "[",
                       summary.first_nonfinite, "]"));
    }
    result_.set_nonfinite_elements(result_.nonfinite_elements() + summary.nonfinite);
  }
  if (spec_.per_tensor) {
    v1::TensorNorm& listed = *result_.add_tensors();
    listed.set_norm(summary.norm);
    listed.set_nonfinite_elements(summary.nonfinite);
    listed.set_zero_elements(summary.zeros);
  }
  in_tensor_ = false;
  ++tensor_;
  elements_ = 0;
}

}  // namespace gradclip
