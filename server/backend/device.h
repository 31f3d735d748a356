// Devices with memory of their own, such as GPUs: what a call needs of one to have its gradient
// measured there, and kept there between norm and reply. The bits are those of every Backend.
#ifndef GRADCLIP_SERVER_BACKEND_DEVICE_H_
#define GRADCLIP_SERVER_BACKEND_DEVICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
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

// Memory of a device that another process owns, as that process names it: bytes [offset, offset +
// length) of an allocation.
struct ExportedMemory {
  std::array<std::byte, 16> device{};      // its UUID
  std::array<std::byte, 64> allocation{};  // the handle that the device's driver gives out for it
  uint64_t offset = 0;
  uint64_t length = 0;
};

// Such memory, open here, to be measured and scaled where it is. Its owner may write to it, and
// does at any time. Thread-safe: methods wait for the device, those of one device for one another.
// Destroying closes it; its device must still be there.
//
// Errors, of all methods: UNAVAILABLE where the device has failed and is out of use;
// RESOURCE_EXHAUSTED where it has no memory.
class DeviceMemory {
 public:
  // Of what one call of Measure() or Scale() is given.
  static constexpr size_t kMostRuns = DeviceQueue::kSlotRuns;
  static constexpr uint64_t kMostBlocks = DeviceQueue::kSlotBytes / sizeof(DeviceBlock);

  virtual ~DeviceMemory() = default;

  virtual std::string_view device() const = 0;  // "cuda/0"

  // Where it begins. The same memory has the same address however often it is open here, and no
  // other has it, on any device.
  virtual uint64_t address() const = 0;

  // Measures `runs`, whose addresses lie in this memory, and gives what was found to `take`.
  // REQUIRES: at most kMostRuns with kMostBlocks.
  using Take = absl::FunctionRef<void(const DeviceFound& found)>;
  virtual absl::Status Measure(std::span<const DeviceRun> runs, NormKind kind, bool per_block,
                               Take take) = 0;
  // Multiplies their elements as Backend::Scale() does, or assigns 0 to them. After an error some
  // may be scaled and some not. REQUIRES: as Measure().
  virtual absl::Status Scale(std::span<const DeviceRun> runs, double coefficient,
                             bool assign_zero) = 0;
  // Brings bytes from an address in this memory to the host.
  virtual absl::Status Fetch(uint64_t address, std::span<std::byte> bytes) = 0;
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

  // Memory of another process. FAILED_PRECONDITION where none of the devices is that memory's;
  // INVALID_ARGUMENT where the driver can't open it, it is another device's than it says, or it is
  // not all in the allocation;
  // UNAVAILABLE and RESOURCE_EXHAUSTED as DeviceMemory's methods.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenMemory(
      const ExportedMemory& memory) = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_DEVICE_H_
