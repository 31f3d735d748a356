#include "server/session/device_part.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "server/memory/arena.h"
#include "server/session/device_findings.h"

namespace gradclip {
namespace {

uint64_t BytesOf(const DeviceRun& run) {
  return run.elements * ElementSize(run.dtype);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DevicePart>> DevicePart::Open(Devices& devices, const CallSpec& spec,
                                                             bool keeps,
                                                             MeasuredGradient& measured) {
  absl::StatusOr<std::unique_ptr<DeviceQueue>> queue =
      devices.Open(SlotPlan::CountSlots(spec), keeps);
  if (!queue.ok()) return queue.status();
  if (*queue == nullptr) return nullptr;
  return std::unique_ptr<DevicePart>(new DevicePart(*std::move(queue), spec, keeps, measured));
}

DevicePart::DevicePart(std::unique_ptr<DeviceQueue> queue, const CallSpec& spec, bool keeps,
                       MeasuredGradient& measured)
    : queue_(std::move(queue)),
      spec_(spec),
      keeps_(keeps),
      kind_(KindOf(spec.norm_type)),
      measured_(measured),
      plan_(spec),
      runs_(queue_->slots()) {}

absl::Status DevicePart::Take(std::span<const std::byte>& elements) {
  while (!elements.empty()) {
    if (begun_ == handed_over_) {
      if (absl::Status begun = BeginSlot(); !begun.ok()) return begun;
    }
    const uint64_t nth = handed_over_;
    const DeviceRun& run = runs(nth)[run_];
    const size_t bytes = std::min<uint64_t>(elements.size(), BytesOf(run) - run_byte_);
    std::memcpy(slot(nth) + run.address + run_byte_, elements.data(), bytes);
    elements = elements.subspan(bytes);
    run_byte_ += bytes;
    if (run_byte_ < BytesOf(run)) continue;
    run_byte_ = 0;
    if (++run_ < runs(nth).size()) continue;
    ++handed_over_;
    if (absl::Status measures = queue_->Measure(nth % runs_.size(), BytesUsed(runs(nth)), runs(nth),
                                                kind_, spec_.per_tensor);
        !measures.ok()) {
      return measures;
    }
  }
  return absl::OkStatus();
}

absl::Status DevicePart::BeginSlot() {
  if (handed_over_ - found_ == runs_.size()) {
    if (absl::Status found = TakeFound(); !found.ok()) return found;
  }
  plan_.Next(runs(begun_++));
  run_ = 0;
  run_byte_ = 0;
  return absl::OkStatus();
}

absl::Status DevicePart::Finish() {
  while (found_ < handed_over_) {
    if (absl::Status found = TakeFound(); !found.ok()) return found;
  }
  return absl::OkStatus();
}

absl::Status DevicePart::TakeFound() {
  const absl::StatusOr<DeviceFound> found = queue_->Await(found_ % runs_.size());
  if (!found.ok()) return found.status();
  const std::vector<DeviceRun>& runs = this->runs(found_++);
  NormPartial sum(spec_.norm_type);
  if (!spec_.per_tensor) {
    sum.AddTally(*found->tally);
    measured_.AddToTotal(sum);
    sum.Clear();
  }
  for (const DeviceRun& run : runs) {
    const TensorSummary summary =
        spec_.per_tensor ? AddBlocksOf(*found, run, sum) : NonfiniteIn(*found->tally, run);
    measured_.AddBlocks(sum, summary, run.elements);
    sum.Clear();
  }
  return absl::OkStatus();
}

absl::Status DevicePart::TakeBack(Keep keep) {
  for (uint64_t nth = keeps_ ? 0 : found_; nth < begun_; ++nth) {
    if (absl::Status given = Give(nth, slot(nth), runs(nth), keep); !given.ok()) return given;
  }
  return absl::OkStatus();
}

absl::Status DevicePart::Give(uint64_t nth, const std::byte* slot,
                              const std::vector<DeviceRun>& runs, Keep keep) {
  const bool filled = nth < handed_over_;
  const size_t whole = filled ? runs.size() : run_;
  for (size_t i = 0; i < runs.size() && i <= whole; ++i) {
    const uint64_t bytes = i < whole ? BytesOf(runs[i]) : run_byte_;
    if (bytes == 0) break;
    const std::span<const std::byte> elements(slot + runs[i].address, bytes);
    if (nth >= found_) measured_.Add(elements.data(), bytes / ElementSize(runs[i].dtype));
    if (!keeps_) continue;
    if (absl::Status kept = keep(runs[i].dtype, elements); !kept.ok()) return kept;
  }
  return absl::OkStatus();
}

absl::Status DevicePart::BringBack(Keep keep) {
  if (slots_hold_all()) return TakeBack(keep);
  // Pieces come into the slots, so what is in one and not measured yet steps aside.
  std::vector<DeviceRun> last_runs;
  std::vector<std::byte> last;
  if (begun_ > handed_over_) {
    last_runs = runs(handed_over_);
    last.assign(slot(handed_over_), slot(handed_over_) + BytesUsed(last_runs));
  }
  plan_ = SlotPlan(spec_);
  for (; sent_ < handed_over_; ++sent_) {
    if (absl::Status came = AwaitPiece(); !came.ok()) return came;
    if (absl::Status given = Give(sent_, slot(sent_), runs(sent_), keep); !given.ok()) return given;
    has_come_ = false;
  }
  return last.empty() ? absl::OkStatus() : Give(handed_over_, last.data(), last_runs, keep);
}

void DevicePart::BeginReply(double coefficient, bool assign_zero) {
  coefficient_ = coefficient;
  assign_zero_ = assign_zero;
  unsent_bytes_ = spec_.gradient_bytes;
  plan_ = SlotPlan(spec_);
  run_ = 0;
  run_byte_ = 0;
}

bool DevicePart::Changes(const std::vector<DeviceRun>& runs) const {
  return assign_zero_ || std::any_of(runs.begin(), runs.end(), [this](const DeviceRun& run) {
           return !LeavesUnchanged(run.dtype, coefficient_);
         });
}

absl::Status DevicePart::FetchAhead() {
  for (; fetched_ < handed_over_ && fetched_ - sent_ < runs_.size(); ++fetched_) {
    plan_.Next(runs(fetched_));
    if (Changes(runs(fetched_))) {
      absl::Status scales = queue_->Scale(fetched_, coefficient_, assign_zero_);
      if (!scales.ok()) return scales;
    }
    absl::Status fetches = queue_->Fetch(fetched_, fetched_ % runs_.size());
    if (!fetches.ok()) return fetches;
  }
  return absl::OkStatus();
}

absl::Status DevicePart::AwaitPiece() {
  if (absl::Status fetches = FetchAhead(); !fetches.ok() || has_come_) return fetches;
  has_come_ = true;
  return queue_->Await(sent_ % runs_.size()).status();
}

absl::StatusOr<ReplySegment> DevicePart::NextSegment() {
  const size_t most = std::min<uint64_t>(unsent_bytes_, ArenaBuffer::kSegmentBytes);
  const std::shared_ptr<std::byte[]> bytes(new std::byte[most]);
  size_t filled = 0;
  while (filled < most) {
    if (absl::Status came = AwaitPiece(); !came.ok()) return came;
    const DeviceRun& run = runs(sent_)[run_];
    const size_t size = ElementSize(run.dtype);
    const size_t now = std::min<uint64_t>(most - filled, BytesOf(run) - run_byte_) / size * size;
    if (now == 0) break;
    std::memcpy(bytes.get() + filled, slot(sent_) + run.address + run_byte_, now);
    filled += now;
    run_byte_ += now;
    if (run_byte_ < BytesOf(run)) continue;
    run_byte_ = 0;
    if (++run_ < runs(sent_).size()) continue;
    run_ = 0;
    has_come_ = false;
    ++sent_;
  }
  unsent_bytes_ -= filled;
  if (unsent_bytes_ == 0) {
    queue_.reset();
  } else if (absl::Status fetches = FetchAhead(); !fetches.ok()) {
    return fetches;
  }
  return ReplySegment{{bytes.get(), filled}, bytes};
}

}  // namespace gradclip
