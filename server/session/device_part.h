// One call's gradient on its way through a device: elements go into the queue's slots in stream
// order and are measured there; where the gradient is kept they stay on the device as pieces, and
// come back scaled. Not thread-safe; one per call.
//
// A slot's bytes stay until the slot is filled again, so a device that fails loses nothing of a
// gradient that is not kept, nor of a kept one that the slots hold whole: TakeBack() has the host
// measure what the device has not, and the host goes on with the same bits.
#ifndef GRADCLIP_SERVER_SESSION_DEVICE_PART_H_
#define GRADCLIP_SERVER_SESSION_DEVICE_PART_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device.h"
#include "server/session/call_spec.h"
#include "server/session/measured_gradient.h"
#include "server/session/reply_segment.h"
#include "server/session/slot_plan.h"

namespace gradclip {

// Methods that return a status wait for the device, some 100 us, where they need a slot that is
// still at work. Their errors are the queue's.
class DevicePart {
 public:
  // Opens a queue for the whole gradient; null where all devices are busy. keeps: it will come
  // back, by NextSegment(). `spec` and `measured` must outlive this. REQUIRES:
  // DevicesMeasure(spec.norm_type).
  static absl::StatusOr<std::unique_ptr<DevicePart>> Open(Devices& devices, const CallSpec& spec,
                                                          bool keeps, MeasuredGradient& measured);

  std::string_view name() const { return queue_->name(); }
  bool keeps() const { return keeps_; }

  // The next elements, all of one tensor. Takes them off the front of `elements`: all of them, but
  // where it fails.
  absl::Status Take(std::span<const std::byte>& elements);

  // `measured` has what was found in all slots that are full; all of them are once all elements
  // have been taken.
  absl::Status Finish();

  // For the host to go on. What was taken is in `measured` afterwards, what the device has not
  // measured, or not told, by the host; and where the gradient is kept, `keep` has been given all
  // of it, in order. Errors are also those of `keep`. Nothing else may follow.
  using Keep = absl::FunctionRef<absl::Status(DType dtype, std::span<const std::byte> elements)>;
  // From the slots alone, as after an error. REQUIRES: slots_hold_all().
  bool slots_hold_all() const { return !keeps_ || begun_ <= runs_.size(); }
  absl::Status TakeBack(Keep keep);
  // After Finish(), from the device too: waits for all that is kept there.
  absl::Status BringBack(Keep keep);

  // After Finish(): scales what is kept, or assigns 0, and brings it back, the next pieces while
  // segments are on their way. The queue is let go of with the last segment. REQUIRES: keeps().
  void BeginReply(double coefficient, bool assign_zero);
  bool has_segment() const { return unsent_bytes_ > 0; }
  absl::StatusOr<ReplySegment> NextSegment();

 private:
  DevicePart(std::unique_ptr<DeviceQueue> queue, const CallSpec& spec, bool keeps,
             MeasuredGradient& measured);

  std::vector<DeviceRun>& runs(uint64_t nth) { return runs_[nth % runs_.size()]; }
  std::byte* slot(uint64_t nth) { return queue_->slot(nth % runs_.size()); }

  absl::Status BeginSlot();
  absl::Status TakeFound();  // of the slot that was handed over first
  // Gives what has been taken of a slot, whose bytes are at `slot`.
  absl::Status Give(uint64_t nth, const std::byte* slot, const std::vector<DeviceRun>& runs,
                    Keep keep);
  absl::Status FetchAhead();
  absl::Status AwaitPiece();  // of slot sent_
  bool Changes(const std::vector<DeviceRun>& runs) const;

  std::unique_ptr<DeviceQueue> queue_;  // null once the last segment has come
  const CallSpec& spec_;
  const bool keeps_;
  const NormKind kind_;
  MeasuredGradient& measured_;

  // Slots are counted through the gradient; the nth is in the queue's slot n modulo slots(). Where
  // the gradient is kept the nth slot is the nth piece.
  SlotPlan plan_;
  std::vector<std::vector<DeviceRun>> runs_;  // of what is in each of the queue's slots
  uint64_t begun_ = 0;                        // slots that have been, or are being, filled
  uint64_t handed_over_ = 0;                  // of them, to Measure()
  uint64_t found_ = 0;                        // of them, those whose findings are in measured_
  // Where in its slot the next element goes; or comes from, on the way back.
  size_t run_ = 0;
  uint64_t run_byte_ = 0;

  // The way back.
  double coefficient_ = 1;
  bool assign_zero_ = false;
  uint64_t unsent_bytes_ = 0;
  uint64_t fetched_ = 0;   // slots whose piece has been asked for
  uint64_t sent_ = 0;      // of them, those that have become segments
  bool has_come_ = false;  // the piece of slot sent_
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_DEVICE_PART_H_
