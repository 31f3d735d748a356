// Devices with memory of their own, such as GPUs: what a call needs of one to have its gradient
// measured there, and kept there between norm and reply. The bits are those of every Backend.
#ifndef GRADCLIP_SERVER_BACKEND_DEVICE_H_
#define GRADCLIP_SERVER_BACKEND_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device_tables.h"

namespace gradclip {

struct DeviceFound {
  const DeviceTally* tally = nullptr;
  std::span<const DeviceBlock> blocks;  // of all runs, in order; empty without per_block
};

// One call's work on one device, in order: all that follows is queued and returns at once, but for
// Await(). Not thread-safe. Destroying it waits for what is under way.
//
// The call fills a slot with whole blocks and hands it to Measure(), which brings it to the device.
// Where the gradient is kept each such slot becomes a piece, numbered from 0, that stays there to
// be scaled and fetched; else nothing is kept. A slot may be written again once Await() has
// returned for it.
//
// Errors, of all methods: UNAVAILABLE where the device has failed and is out of use;
// RESOURCE_EXHAUSTED where it has no memory. After an error every later call gets one too; the
// slots' bytes stay as they were.
class DeviceQueue {
 public:
  static constexpr size_t kSlotBytes = size_t{2} << 20;
  static constexpr size_t kSlotRuns = 1024;
  // Where runs begin in a slot: at multiples of this.
  static constexpr size_t kRunAlignment = 16;

  virtual ~DeviceQueue() = default;

  virtual std::string_view name() const = 0;  // "cuda/0"

  virtual size_t slots() const = 0;  // 1 to 3
  // kSlotBytes of host memory.
  virtual std::byte* slot(size_t slot) = 0;

  // Brings the slot's first `bytes` to the device and measures `runs`, whose addresses are offsets
  // in the slot. REQUIRES: at most kSlotRuns; slots are handed over in turn: 0, 1, 2, 0, ...
  virtual absl::Status Measure(size_t slot, size_t bytes, std::span<const DeviceRun> runs,
                               NormKind kind, bool per_block) = 0;
  // Waits for the slot's Measure() or Fetch(). What was found, after Measure(), stands until the
  // slot's next one.
  virtual absl::StatusOr<DeviceFound> Await(size_t slot) = 0;

  // Multiplies the piece's elements as Backend::Scale() does, or assigns 0 to them.
  virtual absl::Status Scale(size_t piece, double coefficient, bool assign_zero) = 0;
  // Brings a piece's bytes back into a slot, as they were laid out there.
  virtual absl::Status Fetch(size_t piece, size_t slot) = 0;
};

// All devices that a server uses. Thread-safe.
class Devices {
 public:
  virtual ~Devices() = default;

  // How each device stands.
  struct State {
    std::string name;  // "cuda/0"
    bool usable = false;
    uint64_t memory_bytes = 0;  // that pieces may take
    uint64_t used_bytes = 0;    // of them, those that queues have
    uint64_t queues = 0;
  };
  virtual std::vector<State> states() const = 0;

  // Devices that could not be opened, though others were: why, by name.
  virtual std::vector<std::pair<std::string, std::string>> left_out() const { return {}; }

  // A queue on the device that has the least to do, for a gradient of which `slots_filled` slots
  // will be measured; keeps: they are kept. Takes milliseconds where the device's memory is to be
  // taken first. Null where all that could are busy: they have as many queues as they can.
  // RESOURCE_EXHAUSTED where no device has memory left for that; UNAVAILABLE where all are out of
  // use.
  virtual absl::StatusOr<std::unique_ptr<DeviceQueue>> Open(uint64_t slots_filled, bool keeps) = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_DEVICE_H_
