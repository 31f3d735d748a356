// The part of one call's gradient that lies in registered memory, the host's or a device's: which
// elements, cut into tasks that threads can share. Tasks of one plan may run at once; the rest is
// not thread-safe.
#ifndef GRADCLIP_SERVER_SESSION_SHARED_PART_H_
#define GRADCLIP_SERVER_SESSION_SHARED_PART_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gradclip/v1/gradclip.pb.h"
#include "server/backend/backend.h"
#include "server/backend/device.h"
#include "server/norm/pieces.h"
#include "server/session/call_spec.h"
#include "server/shm/registry.h"

namespace gradclip {

// Where in the declared gradient a stream stands.
struct Position {
  size_t tensor = 0;
  uint64_t byte = 0;  // in that tensor
};

class SharedPart {
 public:
  // What a task holds.
  enum class Kind : uint8_t {
    kTensors,  // whole tensors, empty ones included
    kBlocks,   // whole blocks of one tensor; its last one where it ends with the tensor
    // Elements of a block whose others come from elsewhere: no task measures them, but tasks bring
    // them from a device.
    kOpen,
  };
  struct Task {
    Kind kind = Kind::kTensors;
    size_t tensor = 0;  // of the first piece
    size_t first_piece = 0;
    size_t pieces = 0;
    uint64_t bytes = 0;
    DeviceMemory* memory = nullptr;  // where its elements are; null: in the host's
  };

  // `spec` and `backend` must outlive this. writes: the elements will be scaled in place.
  SharedPart(const RegionRegistry& regions, const CallSpec& spec, const Backend& backend,
             uint64_t max_ranges, bool writes);

  // The ranges of the next message, the first of which begins at `position`; REQUIRES: that is an
  // element's start. Sets `bytes` to what they hold. INVALID_ARGUMENT for ranges that are not whole
  // elements in the region, or that overlap; NOT_FOUND for an unknown region; FAILED_PRECONDITION
  // for one that may not be written though `writes`; RESOURCE_EXHAUSTED over max_ranges.
  absl::Status CheckRanges(const v1::SharedRanges& ranges, uint64_t* bytes);

  // Plans tasks for the ranges that were checked last. INVALID_ARGUMENT where one cuts an element.
  absl::Status Plan(Position position);

  // The tasks that the last Plan() added.
  std::span<const Task> tasks() const { return std::span(tasks_).subspan(first_new_task_); }
  std::span<const Piece> pieces(const Task& task) const {
    return std::span(pieces_).subspan(task.first_piece, task.pieces);
  }

  // Of the region of the last CheckRanges(); null: it is the host's.
  DeviceMemory* device_memory() const { return memory_; }
  bool on_devices() const { return on_devices_; }  // some of all that were checked

  // Measures tasks()[index]. The result stands until the next Plan(): measured(), or
  // open_elements() of kOpen. REQUIRES of those: CheckWork() was OK.
  void Measure(size_t index);
  const PiecesNorm& measured(size_t index) const { return *measured_[index]; }
  const std::byte* open_elements(size_t index) const;

  // Lets go of the pieces: nothing will be scaled.
  void ForgetPieces();

  // Scales the elements of one of scale_tasks() tasks: of all that were planned, the last first,
  // which caches may still hold. assign_zero: sets them to 0.
  size_t scale_tasks() const { return tasks_.size(); }
  DeviceMemory* scale_memory(size_t index) const { return scale_task(index).memory; }  // Task's
  void Scale(size_t index, double coefficient, bool assign_zero);

  // How the tasks that have run went. A page of a region was lost while it was used:
  // FAILED_PRECONDITION, or DATA_LOSS where elements may have been scaled. A device failed: its
  // status, or DATA_LOSS.
  absl::Status CheckWork(bool scaled) const;

  bool writes() const { return writes_; }
  uint64_t bytes() const { return bytes_; }  // of all ranges that were checked

 private:
  struct Range {
    std::byte* elements;  // written only where writes_
    uint64_t bytes;
  };

  const Task& scale_task(size_t index) const { return tasks_[tasks_.size() - 1 - index]; }
  absl::Status CheckRange(const Region& region, uint64_t offset, uint64_t length);
  void MeasureOnDeviceOf(const Task& task, size_t index);
  void Note(absl::Status of_device);
  absl::Status AddRange(Range range, Position& position);
  bool Joins(Kind kind, size_t tensor, uint64_t bytes) const;  // the last task
  void AddPiece(Kind kind, const TensorDeclaration& tensor, size_t index, std::byte* elements,
                uint64_t count);

  const RegionRegistry& regions_;
  const CallSpec& spec_;
  const Backend& backend_;
  const uint64_t max_ranges_;
  const bool writes_;

  std::vector<std::shared_ptr<Region>> used_;
  DeviceMemory* memory_ = nullptr;
  bool on_devices_ = false;
  std::vector<Range> ranges_;  // of the last message, no empty ones
  uint64_t range_count_ = 0;   // of all messages
  uint64_t bytes_ = 0;
  // End by start of what all ranges cover, in each file; adjacent ones are one.
  std::map<std::pair<Region::File, uint64_t>, uint64_t> covered_;

  uint64_t task_bytes_ = 0;  // a task has up to about this many
  std::vector<Piece> pieces_;
  std::vector<Task> tasks_;
  size_t first_new_task_ = 0;
  // Of the last Plan()'s tasks.
  std::vector<std::optional<PiecesNorm>> measured_;
  std::vector<std::vector<std::byte>> brought_;  // open elements that are a device's

  mutable std::mutex mutex_;
  absl::Status device_status_;  // the first error; guarded by mutex_
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SESSION_SHARED_PART_H_
