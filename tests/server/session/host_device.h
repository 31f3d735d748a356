// Devices in host memory, on the CPU's kernels, for tests: as late as the interface allows, strict
// about what it requires (EXPECT), and failing when told. Not thread-safe, but for the memory that
// it opens.
//
// What is queued for a slot happens no sooner than Await(): a slot that is written too early is
// measured with what it then holds, and one that is read too early holds rubbish.
#ifndef GRADCLIP_TESTS_SERVER_SESSION_HOST_DEVICE_H_
#define GRADCLIP_TESTS_SERVER_SESSION_HOST_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/backend/device.h"

namespace gradclip {

class HostDevices : public Devices {
 public:
  static constexpr const char* kName = "host/7";

  // `backend` must outlive this.
  explicit HostDevices(const Backend& backend) : backend_(backend) {}
  ~HostDevices() override;  // EXPECTs that no queue is open

  std::vector<State> states() const override { return {State{.name = kName, .usable = true}}; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> Open(uint64_t slots_filled, bool keeps) override;

  // Memory of the "device": bytes [offset, offset + length) of an allocation, which may be any.
  static ExportedMemory Export(std::byte* allocation, uint64_t offset, uint64_t length);
  absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenMemory(const ExportedMemory& memory) override;

  // Of each queue.
  void set_slots(size_t slots) { slots_ = slots; }
  // The nth call from now, from 0, of Open(), Measure(), Await(), Scale() and Fetch() fails with
  // this, and all later ones of the same queue. Those of memory count, too.
  void FailAt(uint64_t nth, absl::Status failure) {
    failure_ = std::move(failure);
    fails_at_ = calls_ + nth;
  }
  void NeverFail() { fails_at_.reset(); }

  uint64_t calls() const { return calls_; }                    // of those methods, so far
  uint64_t opened() const { return opened_; }                  // queues so far
  uint64_t open_queues() const { return open_queues_; }        // now
  uint64_t kept_pieces() const { return kept_pieces_; }        // now
  uint64_t measured_slots() const { return measured_slots_; }  // so far
  uint64_t promised_slots() const { return promised_slots_; }  // to Open(), so far
  uint64_t scaled_pieces() const { return scaled_pieces_; }    // so far

 private:
  class Queue;
  class Memory;

  // Counts a call; its failure where it is to fail.
  absl::Status Called();

  const Backend& backend_;
  size_t slots_ = 2;
  absl::Status failure_;
  std::optional<uint64_t> fails_at_;
  uint64_t calls_ = 0;
  uint64_t opened_ = 0;
  uint64_t open_queues_ = 0;
  uint64_t open_memories_ = 0;
  std::mutex mutex_;  // of what memories share
  uint64_t kept_pieces_ = 0;
  uint64_t measured_slots_ = 0;
  uint64_t promised_slots_ = 0;
  uint64_t scaled_pieces_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_SESSION_HOST_DEVICE_H_
