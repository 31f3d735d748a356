#include "tests/server/session/host_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

namespace gradclip {
namespace {

double SumOfLanes(const Lanes& lanes) {
  std::vector<double> sums(lanes.begin(), lanes.end());
  for (size_t half = kLanes / 2; half >= 1; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// What the norm's definition says of one block.
DeviceBlock MeasureBlock(const Backend& backend, NormKind kind, DType dtype,
                         const std::byte* elements, size_t count) {
  const ElementCounts counts = backend.Count(dtype, elements, count);
  DeviceBlock block = {.sum = 0,
                       .exponent = 0,
                       .nonfinite = static_cast<uint32_t>(counts.nonfinite),
                       .first_nonfinite = static_cast<uint32_t>(counts.first_nonfinite),
                       .zeros = static_cast<uint32_t>(counts.zeros)};
  if (kind == NormKind::kLargest) {
    block.sum = backend.LargestMagnitude(dtype, elements, count);
    return block;
  }
  const bool squares = kind == NormKind::kSquares;
  const auto sum = [&](const std::byte* from) {
    Lanes lanes = {};
    backend.AddToLanes(dtype, squares ? LaneTerm::kSquare : LaneTerm::kMagnitude, from, count, 0,
                       lanes);
    return SumOfLanes(lanes);
  };
  block.sum = sum(elements);
  if (dtype != DType::kFloat64 || counts.nonfinite > 0) return block;
  const bool too_large = std::isinf(block.sum);
  const bool too_small = squares && block.sum < 0x1p-900;
  if (!too_large && !too_small) return block;
  std::vector<std::byte> rescaled(elements, elements + count * sizeof(double));
  backend.Scale(dtype, rescaled.data(), count, too_large ? 0x1p-600 : 0x1p600);
  block.sum = sum(rescaled.data());
  block.exponent = (too_large ? 600 : -600) * (squares ? 2 : 1);
  return block;
}

void AddToTally(const DeviceBlock& block, uint64_t number, NormKind kind, DeviceTally& tally) {
  const uint64_t bits = std::bit_cast<uint64_t>(block.sum);
  ++tally.blocks;
  tally.largest = std::max(tally.largest, bits);
  if (kind != NormKind::kLargest) {
    if (std::isfinite(block.sum)) {
      const FixedPointTerm term = SplitIntoDigits(bits, block.exponent);
      EXPECT_FALSE(term.too_large);
      tally.digits[term.first] += term.low;
      tally.digits[term.first + 1] += term.middle;
      tally.digits[term.first + 2] += term.high;
    } else {
      ++tally.nonfinite_sums;
      if (std::isnan(block.sum)) ++tally.nan_sums;
    }
  }
  if (tally.nonfinite == 0 && block.nonfinite > 0) {
    tally.first_nonfinite = number * kBlockElements + block.first_nonfinite;
  }
  tally.nonfinite += block.nonfinite;
}

struct Found {
  DeviceTally tally = {};
  std::vector<DeviceBlock> blocks;
};

uint64_t AddressOf(const std::byte* memory) {
  return reinterpret_cast<uintptr_t>(memory);
}

// The runs' addresses count from `base`.
Found MeasureRuns(const Backend& backend, uint64_t base, std::span<const DeviceRun> runs,
                  NormKind kind, bool per_block) {
  Found found;
  found.tally.first_nonfinite = DeviceTally::kNone;
  uint64_t number = 0;
  for (const DeviceRun& run : runs) {
    for (uint64_t first = 0; first < run.elements; first += kBlockElements, ++number) {
      const uint64_t address = base + run.address + first * ElementSize(run.dtype);
      const DeviceBlock block =
          MeasureBlock(backend, kind, run.dtype, reinterpret_cast<const std::byte*>(address),
                       std::min<uint64_t>(kBlockElements, run.elements - first));
      if (run.counted) AddToTally(block, number, kind, found.tally);
      if (per_block) found.blocks.push_back(block);
    }
  }
  return found;
}

void ScaleRuns(const Backend& backend, uint64_t base, std::span<const DeviceRun> runs,
               double coefficient, bool assign_zero) {
  for (const DeviceRun& run : runs) {
    auto* const elements = reinterpret_cast<std::byte*>(base + run.address);
    if (assign_zero) {
      std::memset(elements, 0, run.elements * ElementSize(run.dtype));
    } else if (!LeavesUnchanged(run.dtype, coefficient)) {
      backend.Scale(run.dtype, elements, run.elements, coefficient);
    }
  }
}

}  // namespace

class HostDevices::Queue : public DeviceQueue {
 public:
  Queue(HostDevices& devices, bool keeps, uint64_t promised)
      : devices_(devices), keeps_(keeps), promised_(promised), slots_(devices.slots_) {
    ++devices_.open_queues_;
    for (Slot& slot : slots_) slot.bytes.resize(kSlotBytes + 1, kRubbish);
  }
  ~Queue() override {
    --devices_.open_queues_;
    devices_.kept_pieces_ -= pieces_.size();
    for (const Slot& slot : slots_) EXPECT_EQ(slot.bytes.back(), kRubbish) << "written beyond";
  }

  std::string_view name() const override { return kName; }
  size_t slots() const override { return slots_.size(); }
  std::byte* slot(size_t slot) override { return slots_[slot].bytes.data(); }

  absl::Status Measure(size_t slot, size_t bytes, std::span<const DeviceRun> runs, NormKind kind,
                       bool per_block) override {
    if (absl::Status called = Called(); !called.ok()) return called;
    EXPECT_EQ(slot, measured_ % slots_.size()) << "slots are handed over in turn";
    EXPECT_LT(measured_, promised_) << "more slots than Open() was told";
    ++measured_;
    ++devices_.measured_slots_;
    EXPECT_FALSE(slots_[slot].busy);
    CheckRuns(bytes, runs);
    slots_[slot].busy = true;
    if (keeps_) ++devices_.kept_pieces_;
    const size_t piece = pieces_.size();
    if (keeps_) pieces_.emplace_back();
    work_.push_back({slot, [this, slot, bytes, kind, per_block, piece,
                            runs = std::vector<DeviceRun>(runs.begin(), runs.end())] {
                       slots_[slot].found =
                           MeasureRuns(devices_.backend_, AddressOf(slots_[slot].bytes.data()),
                                       runs, kind, per_block);
                       if (!keeps_) return;
                       const std::byte* const begin = slots_[slot].bytes.data();
                       pieces_[piece] = {runs, std::vector<std::byte>(begin, begin + bytes)};
                     }});
    return absl::OkStatus();
  }

  absl::StatusOr<DeviceFound> Await(size_t slot) override {
    if (absl::Status called = Called(); !called.ok()) return called;
    EXPECT_TRUE(slots_[slot].busy) << "nothing is under way";
    for (bool done = false; !done && !work_.empty(); work_.pop_front()) {
      work_.front().run();
      done = work_.front().slot == slot;
    }
    slots_[slot].busy = false;
    return DeviceFound{&slots_[slot].found.tally, slots_[slot].found.blocks};
  }

  absl::Status Scale(size_t piece, double coefficient, bool assign_zero) override {
    if (absl::Status called = Called(); !called.ok()) return called;
    EXPECT_LT(piece, pieces_.size());
    ++devices_.scaled_pieces_;
    work_.push_back({kNoSlot, [this, piece, coefficient, assign_zero] {
                       Piece& kept = pieces_[piece];
                       ScaleRuns(devices_.backend_, AddressOf(kept.bytes.data()), kept.runs,
                                 coefficient, assign_zero);
                     }});
    return absl::OkStatus();
  }

  absl::Status Fetch(size_t piece, size_t slot) override {
    if (absl::Status called = Called(); !called.ok()) return called;
    EXPECT_LT(piece, pieces_.size());
    EXPECT_FALSE(slots_[slot].busy);
    slots_[slot].busy = true;
    std::fill(slots_[slot].bytes.begin(), slots_[slot].bytes.end(), kRubbish);
    work_.push_back({slot, [this, piece, slot] {
                       std::copy(pieces_[piece].bytes.begin(), pieces_[piece].bytes.end(),
                                 slots_[slot].bytes.begin());
                     }});
    return absl::OkStatus();
  }

 private:
  static constexpr std::byte kRubbish{0xdb};
  static constexpr size_t kNoSlot = ~size_t{0};

  struct Work {
    size_t slot = kNoSlot;  // that it reads or writes
    std::function<void()> run;
  };

  struct Slot {
    std::vector<std::byte> bytes;
    bool busy = false;
    Found found;
  };
  struct Piece {
    std::vector<DeviceRun> runs;
    std::vector<std::byte> bytes;
  };

  absl::Status Called() {
    if (failed_.ok()) {
      failed_ = devices_.Called();
    } else {
      ++devices_.calls_;
    }
    return failed_;
  }

  static void CheckRuns(size_t bytes, std::span<const DeviceRun> runs) {
    EXPECT_FALSE(runs.empty());
    EXPECT_LE(runs.size(), kSlotRuns);
    EXPECT_LE(bytes, kSlotBytes);
    uint64_t end = 0;
    uint64_t blocks = 0;
    for (const DeviceRun& run : runs) {
      EXPECT_EQ(run.address % kRunAlignment, 0u);
      EXPECT_GE(run.address, end) << "runs overlap";
      EXPECT_GT(run.elements, 0u);
      EXPECT_EQ(run.first_block, blocks);
      blocks += BlocksOf(run.elements);
      end = run.address + run.elements * ElementSize(run.dtype);
    }
    EXPECT_LE(end, bytes);
  }

  HostDevices& devices_;
  const bool keeps_;
  const uint64_t promised_;
  std::vector<Slot> slots_;
  std::vector<Piece> pieces_;
  std::deque<Work> work_;  // in order; done up to a slot's when that is awaited
  uint64_t measured_ = 0;
  absl::Status failed_;
};

class HostDevices::Memory : public DeviceMemory {
 public:
  Memory(HostDevices& devices, std::byte* begin, uint64_t bytes)
      : devices_(devices), begin_(begin), bytes_(bytes) {
    ++devices_.open_memories_;
  }
  ~Memory() override { --devices_.open_memories_; }

  std::string_view device() const override { return kName; }
  uint64_t address() const override { return reinterpret_cast<uint64_t>(begin_); }

  absl::Status Measure(std::span<const DeviceRun> runs, NormKind kind, bool per_block,
                       Take take) override {
    CheckRuns(runs);
    const std::lock_guard lock(devices_.mutex_);
    if (absl::Status called = devices_.Called(); !called.ok()) return called;
    const Found found = MeasureRuns(devices_.backend_, 0, runs, kind, per_block);
    take({&found.tally, found.blocks});
    return absl::OkStatus();
  }

  absl::Status Scale(std::span<const DeviceRun> runs, double coefficient,
                     bool assign_zero) override {
    CheckRuns(runs);
    const std::lock_guard lock(devices_.mutex_);
    if (absl::Status called = devices_.Called(); !called.ok()) return called;
    ScaleRuns(devices_.backend_, 0, runs, coefficient, assign_zero);
    return absl::OkStatus();
  }

  absl::Status Fetch(uint64_t address, std::span<std::byte> bytes) override {
    CheckInside(address, bytes.size());
    const std::lock_guard lock(devices_.mutex_);
    if (absl::Status called = devices_.Called(); !called.ok()) return called;
    std::memcpy(bytes.data(), reinterpret_cast<const std::byte*>(address), bytes.size());
    return absl::OkStatus();
  }

 private:
  void CheckInside(uint64_t address, uint64_t bytes) const {
    EXPECT_GE(address, this->address());
    EXPECT_LE(address + bytes, this->address() + bytes_);
  }

  void CheckRuns(std::span<const DeviceRun> runs) const {
    EXPECT_FALSE(runs.empty());
    EXPECT_LE(runs.size(), kMostRuns);
    uint64_t blocks = 0;
    for (const DeviceRun& run : runs) {
      EXPECT_EQ(run.address % ElementSize(run.dtype), 0u);
      EXPECT_GT(run.elements, 0u);
      EXPECT_EQ(run.first_block, blocks);
      CheckInside(run.address, run.elements * ElementSize(run.dtype));
      blocks += BlocksOf(run.elements);
    }
    EXPECT_LE(blocks, kMostBlocks);
  }

  HostDevices& devices_;
  std::byte* const begin_;
  const uint64_t bytes_;
};

ExportedMemory HostDevices::Export(std::byte* allocation, uint64_t offset, uint64_t length) {
  ExportedMemory memory = {.offset = offset, .length = length};
  std::memcpy(memory.allocation.data(), &allocation, sizeof(allocation));
  return memory;
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> HostDevices::OpenMemory(
    const ExportedMemory& memory) {
  std::byte* allocation = nullptr;
  std::memcpy(&allocation, memory.allocation.data(), sizeof(allocation));
  return std::make_unique<Memory>(*this, allocation + memory.offset, memory.length);
}

HostDevices::~HostDevices() {
  EXPECT_EQ(open_memories_, 0u);
  EXPECT_EQ(open_queues_, 0u);
  EXPECT_EQ(kept_pieces_, 0u);
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> HostDevices::Open(uint64_t slots_filled, bool keeps) {
  if (absl::Status called = Called(); !called.ok()) return called;
  EXPECT_GT(slots_filled, 0u);
  ++opened_;
  promised_slots_ += slots_filled;
  return std::make_unique<Queue>(*this, keeps, slots_filled);
}

absl::Status HostDevices::Called() {
  return calls_++ == fails_at_ ? failure_ : absl::OkStatus();
}

}  // namespace gradclip
