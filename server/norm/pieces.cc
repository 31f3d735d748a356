#include "server/norm/pieces.h"

namespace gradclip {

PiecesNorm MeasureTensors(const Backend& backend, double norm_type, bool per_tensor, double factor,
                          std::span<const Piece> tensors) {
  GradientNorm norm(backend, norm_type, per_tensor, factor);
  std::vector<TensorSummary> summaries;
  if (per_tensor) summaries.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    norm.BeginTensor(tensors[i].dtype, tensors[i].counted);
    norm.Add(tensors[i].elements, tensors[i].count);
    const TensorSummary summary = norm.EndTensor();
    if (per_tensor) {
      summaries.push_back(summary);
    } else if (summary.nonfinite > 0) {
      summaries.resize(tensors.size());
      summaries[i] = summary;
    }
  }
  return {norm.total(), std::move(summaries)};
}

PiecesNorm MeasureBlocks(const Backend& backend, double norm_type, bool per_tensor, Piece piece) {
  piece.counted = true;
  PiecesNorm norm = MeasureTensors(backend, norm_type, per_tensor, /*factor=*/1, {&piece, 1});
  norm.pieces.resize(1);
  norm.pieces.front().norm = 0;
  return norm;
}

}  // namespace gradclip
