// Measures parts of a gradient that are all in memory, each for itself, so that threads can share
// them; GradientNorm takes the parts together. Values and pure functions.
#ifndef GRADCLIP_SERVER_NORM_PIECES_H_
#define GRADCLIP_SERVER_NORM_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "server/backend/backend.h"
#include "server/norm/gradient_norm.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// Elements of one tensor that follow one another in memory.
struct Piece {
  DType dtype = DType::kFloat32;
  bool counted = true;  // false: left out of the total (replicas)
  const std::byte* elements = nullptr;
  size_t count = 0;

  size_t bytes() const { return count * ElementSize(dtype); }
};

struct PiecesNorm {
  NormPartial sum;
  // One for each piece; empty where there is nothing to tell: not per_tensor, all elements finite.
  std::vector<TensorSummary> pieces;
};

// Of whole tensors, one a piece. `sum` is that of the counted ones. per_tensor and factor are as
// GradientNorm takes them.
PiecesNorm MeasureTensors(const Backend& backend, double norm_type, bool per_tensor, double factor,
                          std::span<const Piece> tensors);

// Of part of one tensor, from a block's start; only where it ends with the tensor may its last
// block be short. `sum` is the piece's, counted or not; there is always one summary, without norm.
PiecesNorm MeasureBlocks(const Backend& backend, double norm_type, bool per_tensor, Piece piece);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NORM_PIECES_H_
