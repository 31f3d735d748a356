// How a slot lies in pinned host memory and a piece in a device's: alike, so that each part is one
// copy. Plain data.
#ifndef GRADCLIP_SERVER_BACKEND_CUDA_DEVICE_PIECE_H_
#define GRADCLIP_SERVER_BACKEND_CUDA_DEVICE_PIECE_H_

#include <cstddef>

#include "server/backend/device.h"

namespace gradclip {

struct alignas(256) DevicePiece {
  // Whole blocks, of elements of 2 bytes, and one short block for each run.
  static constexpr size_t kMostBlocks =
      DeviceQueue::kSlotBytes / (2 * kBlockElements) + DeviceQueue::kSlotRuns;

  std::byte data[DeviceQueue::kSlotBytes];
  DeviceTally tally;  // before `runs`: an empty one is brought with them
  DeviceRun runs[DeviceQueue::kSlotRuns];
  DeviceBlock found[kMostBlocks];
};

static_assert(offsetof(DevicePiece, runs) == offsetof(DevicePiece, tally) + sizeof(DeviceTally),
              "tally and runs are one copy");

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_CUDA_DEVICE_PIECE_H_
