// The session with registered memory, the host's and a device's: a gradient whose parts lie in
// regions or come as data, in any mixture, gets the answer that it gets as data alone, is clipped
// where it lies, and nothing beside it changes. Ranges that are none are refused, for a reason that
// a plain reading of the contract knows, too.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/memory/budget.h"
#include "server/shm/registry.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/session_check.h"
#include "tests/model/answer.h"
#include "tests/model/model.h"
#include "tests/server/session/host_device.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

using absl::StatusCode;

constexpr uint64_t kMemoryBytes = 24 << 10;        // of each memory
constexpr uint64_t kMostGradientBytes = 20 << 10;  // made of an input; over two blocks of F16
constexpr size_t kMostSteps = 24;
constexpr uint64_t kMaxRanges = 16;
constexpr size_t kMemories = 3;
constexpr size_t kDevices = 1;  // that one is a device's, the others are memfds

// What a token names.
struct Place {
  std::string token;
  std::optional<size_t> memory = std::nullopt;  // none: no region has the token
  bool read_only = false;
};

// Regions that all inputs use. Two of the three memories are registered twice.
class World {
 public:
  World() {
    GTEST_FLAG_SET(break_on_failure, true);  // what the device expects
    for (auto& memfd : memfds_) memfd = std::make_unique<MappedMemfd>(kMemoryBytes);
    for (const auto& [memory, read_only] : {std::pair<size_t, bool>{0, false},
                                            {1, false},
                                            {0, false},
                                            {2, true},
                                            {1, true},
                                            {2, false}}) {
      places_.push_back({Register(memory, read_only), memory, read_only});
    }
    RegionToken last;
    places_.back().token.copy(reinterpret_cast<char*>(last.data()), last.size());
    registry_.Forget(last);
    places_.back().memory.reset();
  }

  const RegionRegistry& registry() const { return registry_; }
  // In the order of the constructor; the last one's token is void.
  const std::vector<Place>& places() const { return places_; }
  // libFuzzer sees tokens compared and may put a true one into an input.
  Place PlaceOf(const std::string& token) const {
    const auto found = std::find_if(places_.begin(), places_.end(),
                                    [&](const Place& place) { return place.token == token; });
    return found == places_.end() ? Place{.token = token} : *found;
  }

  void Write(size_t memory, uint64_t offset, std::string_view bytes) {
    if (memory != kDevices) return memfds_[memory]->Write(offset, bytes);
    std::memcpy(devices_memory_.data() + offset, bytes.data(), bytes.size());
  }
  std::array<std::string, kMemories> Read() const {
    std::array<std::string, kMemories> bytes;
    for (size_t i = 0; i < kMemories; ++i) bytes[i] = memfds_[i]->Read(0, kMemoryBytes);
    bytes[kDevices].assign(reinterpret_cast<const char*>(devices_memory_.data()), kMemoryBytes);
    return bytes;
  }

 private:
  std::string Register(size_t memory, bool read_only) {
    const auto token =
        memory == kDevices
            ? registry_.Register(
                  getuid(), HostDevices::Export(devices_memory_.data(), 0, kMemoryBytes), read_only)
            : registry_.Register(getuid(), memfds_[memory]->memfd().get(), kMemoryBytes, read_only);
    FUZZ_CHECK(token.ok());
    return {reinterpret_cast<const char*>(token->data()), token->size()};
  }

  MemoryBudget budget_{uint64_t{1} << 30};
  std::vector<std::byte> devices_memory_ = std::vector<std::byte>(kMemoryBytes);
  HostDevices devices_{TheBackend()};
  RegionRegistry registry_{
      {.max_shared_bytes = uint64_t{1} << 30, .max_shared_bytes_per_peer = uint64_t{1} << 30},
      budget_,
      &devices_};
  std::array<std::unique_ptr<MappedMemfd>, kMemories> memfds_;  // kDevices' is not used
  std::vector<Place> places_;
};

World& TheWorld() {
  static World world;
  return world;
}

// Where elements begin and end in a gradient.
class Layout {
 public:
  explicit Layout(const Tensors& tensors) {
    uint64_t end = 0;
    for (const v1::TensorSpec& tensor : tensors) {
      v1::ComputeNormStart one;
      *one.add_tensors() = tensor;
      end += DeclaredBytes(one.tensors()).value();
      tensors_.push_back({end, ElementSize(static_cast<DType>(tensor.dtype()))});
    }
  }

  uint64_t bytes() const { return tensors_.empty() ? 0 : tensors_.back().end; }

  // Bytes of the element at `byte`, 1 beyond all; how many of these come before `byte`.
  std::pair<uint64_t, uint64_t> At(uint64_t byte) const {
    const auto tensor =
        std::upper_bound(tensors_.begin(), tensors_.end(), byte,
                         [](uint64_t at, const Tensor& tensor) { return at < tensor.end; });
    if (tensor == tensors_.end()) return {1, 0};
    // A tensor is whole elements, so they can be counted from its end.
    const uint64_t size = tensor->element_bytes;
    return {size, (size - (tensor->end - byte) % size) % size};
  }

 private:
  struct Tensor {
    uint64_t end;
    uint64_t element_bytes;
  };
  std::vector<Tensor> tensors_;
};

struct Message {
  std::optional<Place> place = std::nullopt;  // none: it is data
  std::string data = {};
  v1::SharedRanges ranges = {};
};

// Takes numbers and bytes off an input; zeros beyond its end.
class Input {
 public:
  explicit Input(std::string_view bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  std::string_view rest() const { return bytes_; }
  std::string_view Take(size_t count) {
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(taken.size());
    return taken;
  }
  template <typename Number>
  Number Take() {
    Number number = 0;
    const std::string_view taken = Take(sizeof(number));
    std::memcpy(&number, taken.data(), taken.size());
    return number;
  }

 private:
  std::string_view bytes_;
};

// One step of a call, as the input says it. Its first byte: in the lowest three bits where the
// bytes are (0: data, 1 to 6: a place, 7: a token that is up to 31 bytes of the input), and kJoins
// to kHalf. Then, with kRaw, eight bytes of offset and eight of length; else one byte, signed, how
// far beyond the place's last range, aligned, it begins, and two how much of the gradient it holds,
// in elements (or bytes: kBytes), 65,535 being all the rest.
struct Step {
  static constexpr uint8_t kWhere = 7;
  static constexpr uint8_t kJoins = 8;  // the last message, where that is of the same region
  static constexpr uint8_t kRaw = 16;
  static constexpr uint8_t kBytes = 32;
  static constexpr uint8_t kHalf = 64;  // an offset without a length

  uint8_t kind = 0;
  std::string token;  // of where 7
  uint64_t offset = 0;
  uint64_t length = 0;
  int8_t gap = 0;
  uint16_t count = 0;

  explicit Step(Input& input) : kind(input.Take<uint8_t>()) {
    if (where() == 7) token = input.Take(input.Take<uint8_t>() & 31);
    if (raw()) {
      offset = input.Take<uint64_t>();
      length = input.Take<uint64_t>();
    } else {
      gap = input.Take<int8_t>();
      count = input.Take<uint16_t>();
    }
  }

  uint8_t where() const { return kind & kWhere; }
  bool raw() const { return where() != 0 && (kind & kRaw) != 0; }
};

// Turns steps into messages, and writes the parts of the gradient to where they say.
class Plan {
 public:
  Plan(const Layout& layout, std::string_view gradient) : layout_(layout), gradient_(gradient) {}

  void Add(const Step& step) {
    const auto [element, before] = layout_.At(position_);
    const std::string_view left = gradient_.substr(std::min<uint64_t>(position_, gradient_.size()));
    const uint64_t unit = (step.kind & Step::kBytes) != 0 ? 1 : element;
    const std::string_view part =
        step.count == UINT16_MAX ? left : left.substr(0, step.count * unit);
    if (step.where() == 0) {
      messages_.push_back({.data = std::string(part)});
      position_ += part.size();
      return;
    }
    const Place place =
        step.where() == 7 ? TheWorld().PlaceOf(step.token) : TheWorld().places()[step.where() - 1];
    uint64_t offset = step.offset;
    uint64_t length = step.length;
    if (!step.raw()) {
      uint64_t& cursor = cursors_[place.memory.value_or(0)];
      offset = (cursor + element - 1) / element * element + static_cast<int64_t>(step.gap);
      length = part.size();
      if (offset <= kMemoryBytes && length <= kMemoryBytes - offset) {
        if (place.memory.has_value()) TheWorld().Write(*place.memory, offset, part);
        cursor = offset + length;
      }
    }
    const bool joins = (step.kind & Step::kJoins) != 0 && !messages_.empty() &&
                       messages_.back().place.has_value() &&
                       messages_.back().place->token == place.token;
    if (!joins) messages_.push_back({.place = place});
    v1::SharedRanges& ranges = messages_.back().ranges;
    ranges.set_region(place.token);
    ranges.add_offset(offset);
    if ((step.kind & Step::kHalf) == 0) ranges.add_length(length);
    position_ += length;
  }

  // What is left comes as data.
  std::vector<Message> Finish() && {
    if (position_ < gradient_.size()) {
      messages_.push_back({.data = std::string(gradient_.substr(position_))});
    }
    return std::move(messages_);
  }

 private:
  const Layout& layout_;
  const std::string_view gradient_;
  uint64_t position_ = 0;
  std::array<uint64_t, kMemories> cursors_{};
  std::vector<Message> messages_;
};

// What must become of a call's messages by themselves, its start being right.
struct Expected {
  struct Part {
    std::optional<size_t> memory = std::nullopt;  // none: data
    uint64_t offset = 0;                          // in the memory
    uint64_t length = 0;
  };

  std::set<StatusCode> refusals;  // any of these, for the first message that is wrong
  size_t taken = 0;               // messages before that
  std::vector<Part> parts;        // of these, in stream order
  std::string gradient;           // the parts' bytes
  bool sent_as_data = false;
};

// Goes through a call's messages, one after another, with a mark for each byte of memory.
class Reading {
 public:
  // keeps: the server has to keep what comes as data. writes: it scales what is shared.
  Reading(const Layout& layout, bool keeps, bool writes)
      : layout_(layout), keeps_(keeps), writes_(writes), memories_(TheWorld().Read()) {
    for (auto& marks : marks_) marks.resize(kMemoryBytes);
  }

  Expected Read(const std::vector<Message>& messages) && {
    bool shared = false;
    bool data = false;
    for (const Message& message : messages) {
      const size_t parts = expected_.parts.size();
      const size_t bytes = expected_.gradient.size();
      message.place.has_value() ? TakeRanges(*message.place, message.ranges)
                                : TakeData(message.data);
      if (!expected_.refusals.empty()) {
        expected_.parts.resize(parts);
        expected_.gradient.resize(bytes);
        break;
      }
      ++expected_.taken;
      shared = shared || message.place.has_value();
      data = data || !message.data.empty();
    }
    expected_.sent_as_data = data || !shared;
    return std::move(expected_);
  }

 private:
  void Refuse(StatusCode code) { expected_.refusals.insert(code); }

  void TakeData(std::string_view data) {
    const uint64_t left = layout_.bytes() - expected_.gradient.size();
    // What is to be kept is known when the first data comes.
    if (keeps_ && !kept_ && left > kMaxCallBytes) Refuse(StatusCode::kResourceExhausted);
    if (keeps_ && left > 0) kept_ = true;
    if (data.size() > left) Refuse(StatusCode::kInvalidArgument);
    expected_.parts.push_back({.length = data.size()});
    expected_.gradient += data;
  }

  void TakeRanges(const Place& place, const v1::SharedRanges& ranges) {
    if (ranges.offset_size() != ranges.length_size()) Refuse(StatusCode::kInvalidArgument);
    if (place.token.size() != 16) Refuse(StatusCode::kInvalidArgument);
    if (!place.memory.has_value()) Refuse(StatusCode::kNotFound);
    if (writes_ && place.read_only) Refuse(StatusCode::kFailedPrecondition);
    if (layout_.At(expected_.gradient.size()).second != 0) Refuse(StatusCode::kInvalidArgument);
    ranges_ += static_cast<uint64_t>(ranges.offset_size());
    if (ranges_ > kMaxRanges) Refuse(StatusCode::kResourceExhausted);
    if (!place.memory.has_value()) return;
    for (int i = 0; i < std::min(ranges.offset_size(), ranges.length_size()); ++i) {
      TakeRange(*place.memory, ranges.offset(i), ranges.length(i));
    }
    if (expected_.gradient.size() > layout_.bytes()) Refuse(StatusCode::kInvalidArgument);
  }

  void TakeRange(size_t memory, uint64_t offset, uint64_t length) {
    if (length > kMemoryBytes || offset > kMemoryBytes - length) {
      return Refuse(StatusCode::kInvalidArgument);
    }
    const auto marks = marks_[memory].begin() + static_cast<ptrdiff_t>(offset);
    const auto end = marks + static_cast<ptrdiff_t>(length);
    if (std::find(marks, end, true) != end) Refuse(StatusCode::kInvalidArgument);
    std::fill(marks, end, true);
    for (uint64_t at = 0; at < length;) {
      const auto [element, before] = layout_.At(expected_.gradient.size() + at);
      if (before != 0 || (offset + at) % element != 0 || element > length - at) {
        Refuse(StatusCode::kInvalidArgument);
        break;
      }
      at += element;
    }
    expected_.parts.push_back({memory, offset, length});
    expected_.gradient += memories_[memory].substr(offset, length);
  }

  const Layout& layout_;
  const bool keeps_;
  const bool writes_;
  const std::array<std::string, kMemories> memories_;
  std::array<std::vector<bool>, kMemories> marks_;
  bool kept_ = false;
  uint64_t ranges_ = 0;
  Expected expected_;
};

bool IsExactNorm(const v1::NormOptions& norm) {
  const double p = norm.has_norm_type() ? norm.norm_type() : 2;
  return p == 1 || p == 2 || std::isinf(p);
}

struct SharedOutcome : Ended {
  size_t taken = 0;  // messages
};

absl::Status Work(Session& session) {
  for (size_t i = 0; i < session.work_tasks(); ++i) session.RunTask(i);
  return session.FinishWork();
}

absl::Status Send(Session& session, const Message& message, std::string& clipped) {
  if (message.place.has_value()) {
    const absl::Status taken = session.Shared(message.ranges);
    return taken.ok() ? Work(session) : taken;
  }
  if (session.bytes_to_keep() > 0) {
    if (absl::Status may = session.CheckBytesToKeep(); !may.ok()) return may;
  }
  return SendData(session, message.data, clipped);
}

template <typename Start>
SharedOutcome Run(const Start& start, const std::vector<Message>& messages) {
  Session session({.backend = TheBackend(),
                   .arenas = Arenas(),
                   .max_call_bytes = kMaxCallBytes,
                   .regions = &TheWorld().registry(),
                   .max_ranges = kMaxRanges});
  SharedOutcome outcome;
  outcome.status = session.Start(Start(start));
  // A given norm's result stands before the messages, and with it they are scaled as they come.
  if (outcome.status.ok() && session.passes_through()) outcome.result = session.result();
  for (const Message& message : messages) {
    if (outcome.status.ok()) outcome.status = Send(session, message, outcome.clipped);
    if (!outcome.status.ok()) break;
    ++outcome.taken;
    const bool on_device = message.place.has_value() && message.place->memory == kDevices;
    if (on_device && IsExactNorm(start.norm())) outcome.backend = HostDevices::kName;
  }
  if (outcome.status.ok()) outcome.status = EndStream(session);
  if (!outcome.status.ok()) return outcome;
  session.ScaleShared();
  outcome.status = Work(session);
  if (!outcome.status.ok()) return outcome;
  TakeAnswer(session, outcome);
  return outcome;
}

// The memory outside of the parts is as it was; the parts, too, where nothing may be written.
void CheckUntouched(const Expected& expected, bool written,
                    std::array<std::string, kMemories> before,
                    const std::array<std::string, kMemories>& after) {
  for (const Expected::Part& part : expected.parts) {
    if (!written || !part.memory.has_value()) continue;
    before[*part.memory].replace(part.offset, part.length, after[*part.memory], part.offset,
                                 part.length);
  }
  FUZZ_CHECK(before == after);
}

// All parts are scaled: those in memory, and those that came back.
void CheckScaled(const v1::ClipGradNormStart& start, const Expected& expected, const Ended& outcome,
                 const std::array<std::string, kMemories>& after) {
  // A call with a given norm may have ended early: its other elements don't matter.
  std::string gradient = expected.gradient;
  gradient.resize(*DeclaredBytes(start.tensors()));
  const std::string scaled = ModelScale(start, outcome.result, gradient);
  std::string found = scaled;
  size_t position = 0;
  size_t clipped = 0;
  for (const Expected::Part& part : expected.parts) {
    if (part.memory.has_value()) {
      found.replace(position, part.length, after[*part.memory], part.offset, part.length);
    } else if (outcome.result.gradient_follows()) {
      // What is cut off in the middle of an element is not there yet.
      const std::string back = outcome.clipped.substr(clipped, part.length);
      FUZZ_CHECK(back.size() == part.length || !outcome.status.ok());
      found.replace(position, back.size(), back);
      clipped += back.size();
    }
    position += part.length;
  }
  FUZZ_CHECK(outcome.clipped.size() == clipped);
  FUZZ_CHECK(SameElements(start, found, scaled));
}

// The verdict that a message's refusal or, where none is refused, the end leads to.
void CheckVerdict(StatusCode started, const Layout& layout, const Expected& expected,
                  const SharedOutcome& outcome) {
  FUZZ_CHECK(outcome.status.ok() || !outcome.status.message().empty());
  if (started != StatusCode::kOk) {
    FUZZ_CHECK(outcome.status.code() == started && outcome.taken == 0);
    return;
  }
  FUZZ_CHECK(outcome.taken == expected.taken);
  if (!expected.refusals.empty()) {
    FUZZ_CHECK(expected.refusals.contains(outcome.status.code()));
  } else if (expected.gradient.size() < layout.bytes()) {
    FUZZ_CHECK(outcome.status.code() == StatusCode::kInvalidArgument);
  }
}

// The same gradient as data alone.
void CheckLikeData(const v1::ClipGradNormStart& start, const std::string& gradient,
                   const Ended& outcome) {
  const Ended data = Run(start, {{.data = gradient}});
  FUZZ_CHECK(data.status.code() == outcome.status.code());
  // Other norms depend on how the gradient was cut.
  if (!data.status.ok() || !IsExactNorm(start.norm())) return;
  CheckSameNorms(data.result.norm(), outcome.result.norm());
  FUZZ_CHECK(SameDouble(data.result.coefficient(), outcome.result.coefficient()));
}

void CheckCall(const v1::ClipGradNormStart& start, const Layout& layout,
               const std::vector<Message>& messages) {
  const v1::ComputeNormStart compute = ComputeStart(start);
  const StatusCode compute_started = ModelVerdict(compute, layout.bytes());
  const StatusCode started = ModelVerdict(start, layout.bytes(), /*max_call_bytes=*/UINT64_MAX);
  const bool writes = start.reply() != v1::REPLY_COEFFICIENT;
  const Expected read = Reading(layout, /*keeps=*/false, /*writes=*/false).Read(messages);
  const Expected expected =
      Reading(layout, /*keeps=*/writes && !start.has_total_norm(), writes).Read(messages);

  const auto before = TheWorld().Read();
  const SharedOutcome computed = Run(compute, messages);
  CheckUntouched(read, /*written=*/false, before, TheWorld().Read());
  CheckVerdict(compute_started, layout, read, computed);

  const SharedOutcome clipped = Run(start, messages);
  const auto after = TheWorld().Read();
  const bool ok = clipped.status.ok();
  const bool in_place = started == StatusCode::kOk && writes && (ok || start.has_total_norm());
  CheckUntouched(expected, in_place, before, after);
  CheckVerdict(started, layout, expected, clipped);
  if (in_place && layout.bytes() <= kMostGradientBytes)
    CheckScaled(start, expected, clipped, after);

  const auto whole = [&](const Expected& reading) {
    return reading.refusals.empty() && reading.gradient.size() == layout.bytes();
  };
  if (whole(expected)) {
    CheckAnswer(start, expected.gradient, started, expected.sent_as_data, clipped);
    FUZZ_CHECK(writes || clipped.clipped.empty());
    CheckLikeData(start, expected.gradient, clipped);
  }
  if (whole(read)) CheckComputed(start, read.gradient, compute_started, clipped, computed);
}

// Numbers of all sizes, so that ranges anywhere hold something.
const std::string& Noise() {
  static const std::string noise = [] {
    std::string bytes;
    uint32_t state = 1;
    while (bytes.size() < kMemoryBytes) {
      state = state * 1664525 + 1013904223;
      bytes.push_back(static_cast<char>(state >> 24));
    }
    return bytes;
  }();
  return noise;
}

// One byte: how many steps. Two bytes, little-endian: length of the serialised start. The start.
// The steps. The rest: the gradient, over and over until it has the declared bytes; as it is where
// the first byte's highest bit is set, or that would be many.
void Check(std::string_view bytes) {
  if (bytes.empty()) return;
  const auto head = static_cast<uint8_t>(bytes[0]);
  bytes.remove_prefix(1);
  const std::optional<v1::ClipGradNormStart> start = TakeStart(bytes);
  if (!start.has_value()) return;
  const std::optional<uint64_t> declared = DeclaredBytes(start->tensors());
  const Layout layout(declared.has_value() ? start->tensors() : Tensors());

  Input input(bytes);
  std::vector<Step> steps;
  for (size_t i = std::min<size_t>(head & 0x7f, kMostSteps); i > 0 && !input.empty(); --i) {
    steps.emplace_back(input);
  }
  std::string gradient(input.rest());
  if ((head & 0x80) == 0 && !gradient.empty() && layout.bytes() <= kMostGradientBytes) {
    while (gradient.size() < layout.bytes()) gradient += input.rest();
    gradient.resize(layout.bytes());
  }

  for (size_t i = 0; i < kMemories; ++i) TheWorld().Write(i, 0, Noise());
  Plan plan(layout, gradient);
  for (const Step& step : steps) plan.Add(step);
  const std::vector<Message> messages = std::move(plan).Finish();
  CheckCall(*start, layout, messages);
}

}  // namespace
}  // namespace gradclip

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gradclip::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
