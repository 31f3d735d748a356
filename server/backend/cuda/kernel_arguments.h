// What the kernels are given, made of what calls ask for. Pure functions.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_KERNEL_ARGUMENTS_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_KERNEL_ARGUMENTS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "server/backend/cuda/device_piece.h"
#include "server/backend/cuda/kernels.h"

namespace gradclip {

// Writes an empty tally and the runs, `base` added to their addresses, to `host`. The table is then
// good where `host.tally` and what follows it, TableBytes(), has been copied to `device.tally`.
DeviceRuns WriteTable(std::span<const DeviceRun> runs, uint64_t base, DevicePiece& host,
                      const DevicePiece& device);
constexpr size_t TableBytes(size_t runs) {
  return sizeof(DeviceTally) + runs * sizeof(DeviceRun);
}

ScaleFactor MakeScaleFactor(double coefficient, bool assign_zero);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_KERNEL_ARGUMENTS_H_
