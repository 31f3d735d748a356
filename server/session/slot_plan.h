// How a gradient is laid out in a device queue's slots: as its tensors are declared, and nothing
// else, so that a slot's layout is known before its bytes come and again when they go back. Not
// thread-safe.
#ifndef GRADCLIP_SERVER_SESSION_SLOT_PLAN_H_
#define GRADCLIP_SERVER_SESSION_SLOT_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "server/backend/device.h"
#include "server/session/call_spec.h"

namespace gradclip {

// Fills slot after slot with runs of whole blocks, in stream order. A block that does not fit
// begins the next slot.
class SlotPlan {
 public:
  // `spec` must outlive this.
  explicit SlotPlan(const CallSpec& spec) : spec_(&spec) {}

  // Sets `runs` to those of the next slot, with offsets in it as addresses. False, and no runs,
  // where the gradient has no more elements.
  bool Next(std::vector<DeviceRun>& runs);

  // How many slots the gradient takes. Quick, however many bytes are declared.
  static uint64_t CountSlots(const CallSpec& spec);

 private:
  uint64_t SkipFullSlots();

  const CallSpec* spec_;
  size_t tensor_ = 0;
  uint64_t element_ = 0;  // in it; a block's start
};

// Bytes of a slot up to the end of its last run. REQUIRES: there is one.
uint64_t BytesUsed(const std::vector<DeviceRun>& runs);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_SLOT_PLAN_H_
