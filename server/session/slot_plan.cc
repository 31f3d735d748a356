#include "server/session/slot_plan.h"

#include <algorithm>

namespace gradclip {

// A tensor that fills a slot leaves no room: whole slots can be counted by their elements.
static_assert(DeviceQueue::kSlotBytes % (kBlockElements * sizeof(double)) == 0);

bool SlotPlan::Next(std::vector<DeviceRun>& runs) {
  runs.clear();
  uint64_t end = 0;
  uint64_t blocks = 0;
  for (; tensor_ < spec_->tensors.size(); ++tensor_, element_ = 0) {
    const TensorDeclaration& tensor = spec_->tensors[tensor_];
    if (element_ == tensor.elements) continue;
    const uint64_t size = ElementSize(tensor.dtype);
    const uint64_t begin = (end + DeviceQueue::kRunAlignment - 1) / DeviceQueue::kRunAlignment *
                           DeviceQueue::kRunAlignment;
    const uint64_t room = (DeviceQueue::kSlotBytes - begin) / size;
    uint64_t elements = tensor.elements - element_;
    if (elements > room) elements = room / kBlockElements * kBlockElements;
    if (elements == 0 || runs.size() == DeviceQueue::kSlotRuns) return true;
    runs.push_back({.address = begin,
                    .elements = elements,
                    .first_block = blocks,
                    .dtype = tensor.dtype,
                    .counted = !tensor.replica});
    end = begin + elements * size;
    blocks += BlocksOf(elements);
    element_ += elements;
    if (element_ < tensor.elements) return true;
  }
  return !runs.empty();
}

uint64_t SlotPlan::SkipFullSlots() {
  if (tensor_ == spec_->tensors.size()) return 0;
  const TensorDeclaration& tensor = spec_->tensors[tensor_];
  const uint64_t per_slot = DeviceQueue::kSlotBytes / ElementSize(tensor.dtype);
  const uint64_t slots = (tensor.elements - element_) / per_slot;
  element_ += slots * per_slot;
  return slots;
}

uint64_t SlotPlan::CountSlots(const CallSpec& spec) {
  SlotPlan plan(spec);
  std::vector<DeviceRun> runs;
  uint64_t slots = 0;
  while (plan.Next(runs)) slots += 1 + plan.SkipFullSlots();
  return slots;
}

uint64_t BytesUsed(const std::vector<DeviceRun>& runs) {
  return runs.back().address + runs.back().elements * ElementSize(runs.back().dtype);
}

}  // namespace gradclip
