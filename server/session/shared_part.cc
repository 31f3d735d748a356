#include "server/session/shared_part.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/session/device_findings.h"
#include "server/session/device_pieces.h"

namespace gradclip {
namespace {

// A task: long enough that handing it over costs little, short enough that threads end together.
// It depends on nothing but the ranges, as norms other than p = 1, 2 and infinity do on it.
constexpr uint64_t kTaskBytes = uint64_t{256} << 10;
constexpr uint64_t kLongTaskBytes = uint64_t{1} << 20;
constexpr uint64_t kLongTasksAbove = uint64_t{64} << 20;

// A device shares the work out itself.
constexpr uint64_t kDeviceTaskBytes = std::numeric_limits<uint64_t>::max();

// Where a region's elements are, for who reads them here or names them to a device.
std::byte* ElementsOf(const Region& region, bool writes) {
  if (const DeviceMemory* memory = region.device_memory(); memory != nullptr) {
    return reinterpret_cast<std::byte*>(memory->address());
  }
  // Cast: what is not to be written never is.
  return writes ? region.writable_data() : const_cast<std::byte*>(region.data());
}

}  // namespace

SharedPart::SharedPart(const RegionRegistry& regions, const CallSpec& spec, const Backend& backend,
                       uint64_t max_ranges, bool writes)
    : regions_(regions), spec_(spec), backend_(backend), max_ranges_(max_ranges), writes_(writes) {}

absl::Status SharedPart::CheckRanges(const v1::SharedRanges& ranges, uint64_t* bytes) {
  *bytes = 0;
  ranges_.clear();
  if (ranges.offset_size() != ranges.length_size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared has %d offsets and %d lengths; each range has one of both",
                        ranges.offset_size(), ranges.length_size()));
  }
  range_count_ += static_cast<uint64_t>(ranges.offset_size());
  if (range_count_ > max_ranges_) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "shared: the call has %d ranges or more; the limit is %d (--max-ranges). Lay tensors side "
        "by side: what is adjacent in memory needs one range",
        range_count_, max_ranges_));
  }
  RegionToken token;
  if (ranges.region().size() != token.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared: region has %d bytes; the token that registration answered with "
                        "has %d",
                        ranges.region().size(), token.size()));
  }
  std::memcpy(token.data(), ranges.region().data(), token.size());
  std::shared_ptr<Region> region = regions_.Find(token);
  if (region == nullptr) {
    return absl::NotFoundError(
        "shared: no region has this token; a region lives as long as the connection that "
        "registered it. Register the memory again");
  }
  if (writes_ && region->read_only()) {
    return absl::FailedPreconditionError(
        "shared: the region was registered to be read only, and this call clips in place; use "
        "reply REPLY_COEFFICIENT, or register the memory for writing");
  }
  if (region->broken()) {
    return absl::FailedPreconditionError(
        "shared: the region has lost pages; register the memory again");
  }
  memory_ = region->device_memory();
  on_devices_ = on_devices_ || memory_ != nullptr;
  std::byte* const elements = ElementsOf(*region, writes_);
  for (int i = 0; i < ranges.offset_size(); ++i) {
    const uint64_t offset = ranges.offset(i);
    const uint64_t length = ranges.length(i);
    if (absl::Status checked = CheckRange(*region, offset, length); !checked.ok()) {
      return absl::Status(checked.code(),
                          absl::StrFormat("shared: range #%d, of %d bytes at %d, %s", i, length,
                                          offset, checked.message()));
    }
    if (length == 0) continue;
    ranges_.push_back({elements + offset, length});
    *bytes += length;
  }
  bytes_ += *bytes;
  if (std::find(used_.begin(), used_.end(), region) == used_.end()) {
    used_.push_back(std::move(region));
  }
  return absl::OkStatus();
}

absl::Status SharedPart::CheckRange(const Region& region, uint64_t offset, uint64_t length) {
  if (length > region.size() || offset > region.size() - length) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ends beyond the region's %d bytes", region.size()));
  }
  if (length == 0) return absl::OkStatus();
  offset += region.origin();
  const auto after = covered_.upper_bound({region.file(), offset});
  const bool overlaps_after = after != covered_.end() && after->first.first == region.file() &&
                              after->first.second < offset + length;
  auto before = after == covered_.begin() ? covered_.end() : std::prev(after);
  if (before != covered_.end() && before->first.first != region.file()) before = covered_.end();
  if (overlaps_after || (before != covered_.end() && before->second > offset)) {
    return absl::InvalidArgumentError(
        "overlaps an earlier one of this call; list weights that are tied once");
  }
  if (before != covered_.end() && before->second == offset) {
    before->second = offset + length;
  } else {
    covered_.emplace_hint(after, std::pair(region.file(), offset), offset + length);
  }
  return absl::OkStatus();
}

absl::Status SharedPart::Plan(Position position) {
  uint64_t bytes = 0;
  for (const Range& range : ranges_) bytes += range.bytes;
  task_bytes_ = bytes > kLongTasksAbove ? kLongTaskBytes : kTaskBytes;
  if (memory_ != nullptr && DevicesMeasure(spec_.norm_type)) task_bytes_ = kDeviceTaskBytes;
  first_new_task_ = tasks_.size();
  for (const Range& range : ranges_) {
    if (absl::Status added = AddRange(range, position); !added.ok()) return added;
  }
  measured_.clear();
  measured_.resize(tasks_.size() - first_new_task_);
  brought_.assign(memory_ == nullptr ? 0 : measured_.size(), {});
  return absl::OkStatus();
}

absl::Status SharedPart::AddRange(Range range, Position& position) {
  while (range.bytes > 0) {
    const TensorDeclaration& tensor = spec_.tensors[position.tensor];
    const uint64_t missing = tensor.bytes() - position.byte;
    if (missing == 0) {
      // An empty tensor goes with the whole ones before it, if any.
      if (tensor.bytes() == 0 && Joins(Kind::kTensors, position.tensor, 0)) {
        AddPiece(Kind::kTensors, tensor, position.tensor, nullptr, 0);
      }
      ++position.tensor;
      position.byte = 0;
      continue;
    }
    const uint64_t mine = std::min(range.bytes, missing);
    const size_t size = ElementSize(tensor.dtype);
    if (reinterpret_cast<uintptr_t>(range.elements) % size != 0 || mine % size != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "shared: a range has %d bytes of tensor %s at an offset of %d beyond a multiple of its "
          "element's %d bytes; ranges hold whole elements at multiples of their size",
          mine, DescribeTensor(tensor.name, position.tensor),
          reinterpret_cast<uintptr_t>(range.elements) % size, size));
    }
    const bool whole = mine == tensor.bytes();
    const bool ends = mine == missing;
    uint64_t element = position.byte / size;
    uint64_t left = mine / size;
    std::byte* at = range.elements;
    const auto add = [&](Kind kind, uint64_t count) {
      AddPiece(kind, tensor, position.tensor, at, count);
      at += count * size;
      element += count;
      left -= count;
    };
    if (whole && mine <= task_bytes_) {
      add(Kind::kTensors, left);
    } else {
      if (element % kBlockElements != 0) {
        add(Kind::kOpen, std::min(left, kBlockElements - element % kBlockElements));
      }
      while (left >= kBlockElements || (ends && left > 0)) {
        add(Kind::kBlocks, left <= task_bytes_ / size ? left - (ends ? 0 : left % kBlockElements)
                                                      : task_bytes_ / size);
      }
      if (left > 0) add(Kind::kOpen, left);
    }
    range.elements += mine;
    range.bytes -= mine;
    position.byte += mine;
  }
  return absl::OkStatus();
}

bool SharedPart::Joins(Kind kind, size_t tensor, uint64_t bytes) const {
  if (kind != Kind::kTensors || tasks_.size() == first_new_task_) return false;
  const Task& last = tasks_.back();
  return last.kind == kind && last.tensor + last.pieces == tensor &&
         last.bytes + bytes <= task_bytes_;
}

void SharedPart::AddPiece(Kind kind, const TensorDeclaration& tensor, size_t index,
                          std::byte* elements, uint64_t count) {
  const Piece piece = {tensor.dtype, !tensor.replica, elements, count};
  if (!Joins(kind, index, piece.bytes())) {
    tasks_.push_back({kind, index, pieces_.size(), 0, 0, memory_});
  }
  pieces_.push_back(piece);
  ++tasks_.back().pieces;
  tasks_.back().bytes += piece.bytes();
}

void SharedPart::Measure(size_t index) {
  const Task& task = tasks()[index];
  if (task.memory != nullptr) return MeasureOnDeviceOf(task, index);
  switch (task.kind) {
    case Kind::kTensors:
      measured_[index] = MeasureTensors(backend_, spec_.norm_type, spec_.per_tensor,
                                        spec_.rule.pre_scale, pieces(task));
      break;
    case Kind::kBlocks:
      measured_[index] =
          MeasureBlocks(backend_, spec_.norm_type, spec_.per_tensor, pieces(task).front());
      break;
    case Kind::kOpen:
      break;
  }
}

void SharedPart::MeasureOnDeviceOf(const Task& task, size_t index) {
  if (task.kind == Kind::kOpen) {
    absl::StatusOr<std::vector<std::byte>> elements =
        FetchFromDevice(*task.memory, pieces(task).front());
    Note(elements.status());
    if (elements.ok()) brought_[index] = *std::move(elements);
    return;
  }
  Piece blocks = pieces(task).front();
  blocks.counted = true;  // whether they are is known where they are added
  absl::StatusOr<PiecesNorm> found =
      MeasureOnDevice(*task.memory, backend_, spec_,
                      task.kind == Kind::kBlocks ? std::span(&blocks, 1) : pieces(task));
  Note(found.status());
  if (found.ok()) measured_[index] = *std::move(found);
}

const std::byte* SharedPart::open_elements(size_t index) const {
  const Task& task = tasks()[index];
  return task.memory == nullptr ? pieces(task).front().elements : brought_[index].data();
}

void SharedPart::Note(absl::Status of_device) {
  if (of_device.ok()) return;
  const std::lock_guard lock(mutex_);
  if (device_status_.ok()) device_status_ = std::move(of_device);
}

void SharedPart::ForgetPieces() {
  pieces_.clear();
  tasks_.clear();
  measured_.clear();
  brought_.clear();
  first_new_task_ = 0;
}

void SharedPart::Scale(size_t index, double coefficient, bool assign_zero) {
  const Task& task = scale_task(index);
  if (task.memory != nullptr) {
    return Note(ScaleOnDevice(*task.memory, pieces(task), coefficient, assign_zero));
  }
  for (const Piece& piece : pieces(task)) {
    auto* const elements = const_cast<std::byte*>(piece.elements);
    if (assign_zero) {
      if (piece.count > 0) std::memset(elements, 0, piece.bytes());
    } else if (!LeavesUnchanged(piece.dtype, coefficient)) {
      backend_.Scale(piece.dtype, elements, piece.count, coefficient);
    }
  }
}

absl::Status SharedPart::CheckWork(bool scaled) const {
  {
    const std::lock_guard lock(mutex_);
    if (!device_status_.ok()) {
      return scaled
                 ? absl::DataLossError(absl::StrFormat(
                       "shared: a device failed while elements were scaled; some are and some "
                       "are not: %s",
                       device_status_.message()))
                 : absl::Status(device_status_.code(),
                                absl::StrFormat("shared: the memory can't be measured, and is as "
                                                "it was: %s",
                                                device_status_.message()));
    }
  }
  for (const std::shared_ptr<Region>& region : used_) {
    if (!region->broken()) continue;
    return scaled ? absl::DataLossError(
                        "shared: pages of the region were lost while its elements were scaled; "
                        "some are and some are not. Register the memory again")
                  : absl::FailedPreconditionError(
                        "shared: pages of the region were lost while it was read; nothing was "
                        "changed. Register the memory again");
  }
  return absl::OkStatus();
}

}  // namespace gradclip
