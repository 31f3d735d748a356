// One call's protocol, from start to the last reply byte, without the transport: refuses malformed
// streams, measures the gradient as it comes, decides, and scales what goes back.
// Not thread-safe; one per call.
//
// Where there are devices, a gradient that is streamed and whose p is 1, 2 or infinity is measured
// on one, and kept there if it is to come back. Who measures changes no bit of the answer. Data(),
// Shared(), HalfClose() and NextSegment() then may wait for the device: some 100 us at a time, but
// for the first Data(), for which the device's memory may have to be taken first, some ms, and for
// Shared() after data that was kept there, which waits for all of it to come back.
//
// Where a device fails, and host_on_device_error, the host goes on with the bytes in the device's
// place. Those that were kept on the device alone are lost, and the call ends with UNAVAILABLE: it
// is to be sent again. A device that has no memory left for a call (Devices::Open(),
// RESOURCE_EXHAUSTED) has not failed, but other calls hold it; operators who let the host stand in
// for a device that is broken want it all the more for one that is busy, so the host takes the call
// then too. Nobody waits for a device's memory. Otherwise the device's own status ends the call,
// for a lack of memory with the name of the flag that sets it. Where all devices have as many calls
// as they can at once, which no flag sets, the host takes the call in any case.
#ifndef GRADCLIP_SERVER_SESSION_SESSION_H_
#define GRADCLIP_SERVER_SESSION_SESSION_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"
#include "server/backend/device.h"
#include "server/group/participant.h"
#include "server/memory/arena.h"
#include "server/session/call_spec.h"
#include "server/session/device_part.h"
#include "server/session/measured_gradient.h"
#include "server/session/reply_segment.h"
#include "server/session/shared_part.h"
#include "server/shm/registry.h"

namespace gradclip {

// The order of events:
//   Start()  once
//   Data(), Shared()  any number of times, in stream order
//   HalfClose()  when the caller has sent all
//   with a group: contribution(), and Conclude() with what came of all ranks' together
//   ScaleShared(), then result(), then, where result().gradient_follows(), NextSegment() while
//   has_segment()
// With a given total_norm (passes_through()), result() stands after Start(), PassThrough() takes
// the place of Data(), and Shared() scales. An event that returns an error ends the session: no
// other may follow.
//
// Shared() and ScaleShared() give work that threads can share; before the next event all of its
// tasks must have run, and FinishWork() after them.
class Session {
 public:
  // What a session may do and with what; all must outlive it.
  struct Means {
    const Backend& backend;
    ArenaPool& arenas;
    uint64_t max_call_bytes = 0;              // --max-call-bytes: gradient bytes kept
    const RegionRegistry* regions = nullptr;  // null: no shared memory
    uint64_t max_ranges = 0;                  // --max-ranges
    Devices* devices = nullptr;               // null: the host does all
    bool host_on_device_error = true;         // --on-gpu-error=cpu
  };
  explicit Session(const Means& means);
  ~Session();

  // Takes the tensors' names out of `start`.
  absl::Status Start(v1::ComputeNormStart&& start);
  absl::Status Start(v1::ClipGradNormStart&& start);

  // Whether `bytes` more may come: INVALID_ARGUMENT before the start and beyond what it declares.
  absl::Status CheckMayReceive(uint64_t bytes) const;

  // Gradient bytes that are to be kept if the next ones come as data: what Data() REQUIRES
  // admission of, at the latest. 0 once PrepareToKeep() has been called. Where no memory is shared,
  // that is known from the start. What is kept on a device counts too, and so needs host memory
  // admitted: the host may have to take over, and a slow reader's reply waits in host memory.
  uint64_t bytes_to_keep() const;
  // RESOURCE_EXHAUSTED where bytes_to_keep() is over --max-call-bytes.
  absl::Status CheckBytesToKeep() const;
  // They are admitted.
  void PrepareToKeep();

  // The next bytes of the gradient, cut anywhere.
  absl::Status Data(std::span<const std::byte> bytes);

  // The next bytes in; the clipped bytes of all elements that are complete by now are written to
  // `out`, which has room for bytes.size() + 7. *written says how many.
  absl::Status PassThrough(std::span<const std::byte> bytes, std::byte* out, size_t* written);

  // The next elements, in registered memory. Errors: SharedPart's; UNIMPLEMENTED without regions.
  absl::Status Shared(const v1::SharedRanges& ranges);

  // A request without payload: a refusal.
  absl::Status NoPayload() const;

  absl::Status HalfClose();

  // With a group, after HalfClose(): what this rank adds, and what all ranks together have.
  // Conclude: FAILED_PRECONDITION as the non-finite policy says, to all ranks alike.
  Contribution contribution() const;
  absl::Status Conclude(const Outcome& outcome);

  // After HalfClose(): the work of scaling what is shared.
  void ScaleShared();

  // The work at hand. Tasks may run on several threads at once, each once.
  size_t work_tasks() const { return work_tasks_; }
  uint64_t work_bytes() const { return work_bytes_; }
  // Whether some tasks wait for a device, and for which this one does, such as "cuda/0": some ms,
  // or more where other work is there before. Empty: for none.
  bool work_waits() const { return work_ != Work::kNone && shared_->on_devices(); }
  std::string_view task_device(size_t index) const {
    const DeviceMemory* const memory =
        work_ == Work::kMeasure ? shared_->tasks()[index].memory : shared_->scale_memory(index);
    return memory == nullptr ? std::string_view() : memory->device();
  }
  void RunTask(size_t index);
  absl::Status FinishWork();
  // Tasks that have not begun will do nothing. The one method for any thread at any time.
  void Abandon() { abandoned_.store(true, std::memory_order_relaxed); }

  // After an OK Start().
  bool started() const { return started_; }
  const CallSpec& spec() const { return spec_; }
  bool clips() const { return clips_; }  // ClipGradNorm's start, not ComputeNorm's
  // A device was to measure the gradient, and the host does, or has gone on.
  bool fell_back() const { return fell_back_; }
  bool passes_through() const { return spec_.total_norm.has_value(); }
  uint64_t received_bytes() const { return received_bytes_; }  // shared ones included
  uint64_t shared_bytes() const { return shared_ == nullptr ? 0 : shared_->bytes(); }

  // Whether the total norm is known, and with it result().norm(), whatever the policy says to it.
  bool decided() const { return decided_; }

  // After HalfClose(), with a group after Conclude() (ComputeNorm: norm() alone is meant).
  const v1::ClipResult& result() const { return result_; }

  // The clipped gradient, in the order in which its bytes came, segment by segment.
  // Errors: a device's that kept it.
  bool has_segment() const;
  absl::StatusOr<ReplySegment> NextSegment();
  // What keeps the gradient's bytes.
  const std::shared_ptr<ArenaBuffer>& gradient() const { return gradient_; }

 private:
  enum class Work : uint8_t { kNone, kMeasure, kScale };

  absl::Status Begin(absl::StatusOr<CallSpec> spec);
  absl::Status TakeElements(std::span<const std::byte> whole);
  absl::Status Keep(DType dtype, std::span<const std::byte> elements);
  absl::Status ChooseDevice();
  // The host takes over from the device: because that has failed, or because memory is shared. OK:
  // device_ is null, and the host goes on.
  absl::Status FallBack(const absl::Status& failure);
  absl::Status HandOver();
  void LeaveDevice();
  // How the call ends where the device fails that alone has the gradient.
  absl::Status Lost(const absl::Status& failure) const;
  void TakeMeasured(size_t index);
  void Advance(uint64_t bytes);   // position_
  void SkipRuns(uint64_t bytes);  // with a given norm, past elements that need no reply
  bool keeps_data() const;
  // `nonfinite`, `first`: elements of all that were measured for that norm, and the first of them
  // for people.
  absl::Status Decide(double total_norm, uint64_t nonfinite, const std::string& first);
  bool ChangesAnything() const;
  void Scale(std::span<const DTypeRun> runs, std::span<std::byte> elements);

  const Means means_;

  bool started_ = false;
  bool clips_ = false;
  CallSpec spec_;
  Position position_;  // of what has been received
  uint64_t received_bytes_ = 0;

  // The bytes of an element that is not complete yet.
  std::array<std::byte, 8> partial_{};
  size_t partial_bytes_ = 0;

  std::optional<MeasuredGradient> measured_;  // unless passes_through()
  std::shared_ptr<ArenaBuffer> gradient_;     // null where nothing is kept
  std::vector<DTypeRun> kept_;                // what is in gradient_

  bool device_chosen_ = false;          // or the host, for good: the first element has come
  std::unique_ptr<DevicePart> device_;  // null where the host does all

  std::unique_ptr<SharedPart> shared_;  // null until shared memory comes
  Work work_ = Work::kNone;
  size_t work_tasks_ = 0;
  uint64_t work_bytes_ = 0;
  std::atomic<bool> abandoned_ = false;

  bool fell_back_ = false;

  bool decided_ = false;
  v1::ClipResult result_;
  bool assign_zero_ = false;

  size_t next_segment_ = 0;  // of gradient_
  // Where scaling stands among kept_, or, with a given norm, spec_.runs.
  size_t scale_run_ = 0;
  uint64_t scale_byte_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_SESSION_H_
