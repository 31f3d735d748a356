#include "server/backend/cuda/kernel_arguments.h"

#include "server/backend/backend.h"

namespace gradclip {

DeviceRuns WriteTable(std::span<const DeviceRun> runs, uint64_t base, DevicePiece& host,
                      const DevicePiece& device) {
  DeviceRuns table = {device.runs, static_cast<uint32_t>(runs.size()), 0};
  host.tally = EmptyTally();
  for (size_t i = 0; i < runs.size(); ++i) {
    host.runs[i] = runs[i];
    host.runs[i].address += base;
    host.runs[i].first_block = table.blocks;
    table.blocks += BlocksOf(runs[i].elements);
  }
  return table;
}

ScaleFactor MakeScaleFactor(double coefficient, bool assign_zero) {
  ScaleFactor factor;
  factor.coefficient = coefficient;
  factor.in_double = ScalesInDouble(coefficient);
  factor.assign_zero = assign_zero;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    if (assign_zero || !LeavesUnchanged(dtype, coefficient)) {
      factor.dtypes |= 1u << static_cast<unsigned>(dtype);
    }
  }
  return factor;
}

}  // namespace gradclip
