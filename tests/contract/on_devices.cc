#include "tests/contract/on_devices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

namespace gradclip {
namespace {

NormKind KindOf(double norm_type) {
  if (norm_type == 1) return NormKind::kMagnitudes;
  return norm_type == 2 ? NormKind::kSquares : NormKind::kLargest;
}

// Calls visit(queue, slot, part) for the tensor's parts once each has been measured.
template <typename Byte, typename Visit>
void ForEachPart(Devices& devices, DType dtype, std::span<Byte> tensor, NormKind kind, bool keeps,
                 Visit visit) {
  constexpr size_t kPart = DeviceQueue::kSlotBytes;
  const size_t parts = (tensor.size() + kPart - 1) / kPart;
  const absl::StatusOr<std::unique_ptr<DeviceQueue>> opened = devices.Open(parts, keeps);
  ASSERT_TRUE(opened.ok()) << opened.status();
  DeviceQueue& queue = **opened;
  for (size_t i = 0; i < parts; ++i) {
    const std::span<Byte> part =
        tensor.subspan(i * kPart).first(std::min(kPart, tensor.size() - i * kPart));
    const size_t slot = i % queue.slots();
    std::memcpy(queue.slot(slot), part.data(), part.size());
    const DeviceRun run = {.elements = part.size() / ElementSize(dtype), .dtype = dtype};
    ASSERT_TRUE(queue.Measure(slot, part.size(), {&run, 1}, kind, /*per_block=*/false).ok());
    visit(queue, i, slot, part);
  }
}

}  // namespace

void MeasureOn(Devices& devices, DType dtype, std::span<const std::byte> tensor,
               NormPartial& total) {
  ForEachPart(devices, dtype, tensor, KindOf(total.norm_type()), /*keeps=*/false,
              [&](DeviceQueue& queue, size_t, size_t slot, std::span<const std::byte>) {
                const absl::StatusOr<DeviceFound> found = queue.Await(slot);
                ASSERT_TRUE(found.ok()) << found.status();
                total.AddTally(*found->tally);
              });
}

void ScaleOn(Devices& devices, DType dtype, std::span<std::byte> tensor, double coefficient) {
  ForEachPart(devices, dtype, tensor, NormKind::kLargest, /*keeps=*/true,
              [&](DeviceQueue& queue, size_t piece, size_t slot, std::span<std::byte> part) {
                ASSERT_TRUE(queue.Await(slot).ok());
                ASSERT_TRUE(queue.Scale(piece, coefficient, /*assign_zero=*/false).ok());
                ASSERT_TRUE(queue.Fetch(piece, slot).ok());
                ASSERT_TRUE(queue.Await(slot).ok());
                std::memcpy(part.data(), queue.slot(slot), part.size());
              });
}

}  // namespace gradclip
