#include "server/session/device_findings.h"

#include <cmath>

namespace gradclip {

bool DevicesMeasure(double norm_type) {
  return norm_type == 1 || norm_type == 2 || std::isinf(norm_type);
}

NormKind KindOf(double norm_type) {
  if (norm_type == 1) return NormKind::kMagnitudes;
  return norm_type == 2 ? NormKind::kSquares : NormKind::kLargest;
}

TensorSummary NonfiniteIn(const DeviceTally& tally, const DeviceRun& run) {
  TensorSummary found;
  const uint64_t block = tally.first_nonfinite / kBlockElements;
  if (tally.nonfinite > 0 && block >= run.first_block &&
      block < run.first_block + BlocksOf(run.elements)) {
    found.nonfinite = tally.nonfinite;
    found.first_nonfinite = tally.first_nonfinite - run.first_block * kBlockElements;
  }
  return found;
}

TensorSummary AddBlocksOf(const DeviceFound& found, const DeviceRun& run, NormPartial& sum) {
  TensorSummary summary;
  for (uint64_t i = 0; i < BlocksOf(run.elements); ++i) {
    const DeviceBlock& block = found.blocks[run.first_block + i];
    if (std::isinf(sum.norm_type())) {
      sum.AddLargest(block.sum);
    } else {
      sum.AddSum(block.sum, block.exponent);
    }
    if (summary.nonfinite == 0 && block.nonfinite > 0) {
      summary.first_nonfinite = i * kBlockElements + block.first_nonfinite;
    }
    summary.nonfinite += block.nonfinite;
    summary.zeros += block.zeros;
  }
  return summary;
}

}  // namespace gradclip
