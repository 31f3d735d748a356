#include "server/session/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/session/device_findings.h"

namespace gradclip {
namespace {

// The largest multiple of `size`, a power of two, that is not over `bytes`.
constexpr uint64_t RoundDown(uint64_t bytes, size_t size) {
  return bytes & ~uint64_t{size - 1};
}

// Statuses travel in headers, which are a few kilobytes; the end, with the index, says most.
std::string Shortened(const std::string& element) {
  constexpr size_t kShownBytes = 150;
  const std::string end = element.size() <= kShownBytes
                              ? element
                              : "..." + element.substr(element.size() - kShownBytes);
  return absl::Utf8SafeCEscape(end);
}

}  // namespace

Session::Session(const Means& means) : means_(means) {}

Session::~Session() = default;

absl::Status Session::Start(v1::ComputeNormStart&& start) {
  return Begin(started_ ? CallSpec() : MakeCallSpec(std::move(start)));
}

absl::Status Session::Start(v1::ClipGradNormStart&& start) {
  clips_ = true;
  return Begin(started_ ? CallSpec() : MakeCallSpec(std::move(start)));
}

absl::Status Session::Begin(absl::StatusOr<CallSpec> spec) {
  if (started_) {
    return absl::InvalidArgumentError("a second start message came; a call has one, its first");
  }
  if (!spec.ok()) return spec.status();
  spec_ = *std::move(spec);
  started_ = true;
  result_.mutable_norm()->set_backend(std::string(means_.backend.name()));
  if (passes_through()) return Decide(*spec_.total_norm, 0, "");

  measured_.emplace(means_.backend, spec_, *result_.mutable_norm());
  return means_.regions == nullptr ? CheckBytesToKeep() : absl::OkStatus();
}

bool Session::keeps_data() const {
  return clips_ && spec_.reply != v1::REPLY_COEFFICIENT && !passes_through();
}

uint64_t Session::bytes_to_keep() const {
  return keeps_data() && gradient_ == nullptr ? spec_.gradient_bytes - received_bytes_ : 0;
}

absl::Status Session::CheckBytesToKeep() const {
  if (bytes_to_keep() <= means_.max_call_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the gradient has %d bytes; the server keeps at most %d for one call (--max-call-bytes). "
      "With reply REPLY_COEFFICIENT it keeps none: the caller multiplies by the coefficient",
      bytes_to_keep(), means_.max_call_bytes));
}

void Session::PrepareToKeep() {
  if (bytes_to_keep() > 0) {
    gradient_ = std::make_shared<ArenaBuffer>(means_.arenas, bytes_to_keep());
  }
}

absl::Status Session::CheckMayReceive(uint64_t bytes) const {
  if (!started_) {
    return absl::InvalidArgumentError("data came before the start message; start comes first");
  }
  if (bytes > spec_.gradient_bytes - received_bytes_) {
    const size_t tensors = spec_.tensors.size();
    const std::string last =
        tensors == 0
            ? ""
            : absl::StrCat(" up to ", DescribeTensor(spec_.tensors.back().name, tensors - 1));
    return absl::InvalidArgumentError(
        absl::StrFormat("%d bytes of data came after %d; the %d tensors%s declare %d in all", bytes,
                        received_bytes_, tensors, last, spec_.gradient_bytes));
  }
  return absl::OkStatus();
}

absl::Status Session::Data(std::span<const std::byte> bytes) {
  if (absl::Status may = CheckMayReceive(bytes.size()); !may.ok()) return may;
  PrepareToKeep();
  received_bytes_ += bytes.size();
  while (!bytes.empty()) {
    const TensorDeclaration& tensor = spec_.tensors[position_.tensor];
    const size_t element = ElementSize(tensor.dtype);
    const uint64_t missing = tensor.bytes() - position_.byte;
    if (missing == 0) {
      position_ = {position_.tensor + 1, 0};
      continue;
    }
    std::span<const std::byte> mine = bytes.first(std::min<uint64_t>(bytes.size(), missing));
    bytes = bytes.subspan(mine.size());
    position_.byte += mine.size();

    if (partial_bytes_ > 0) {
      const size_t rest = std::min(element - partial_bytes_, mine.size());
      std::memcpy(partial_.data() + partial_bytes_, mine.data(), rest);
      partial_bytes_ += rest;
      mine = mine.subspan(rest);
      if (partial_bytes_ < element) continue;
      partial_bytes_ = 0;
      if (absl::Status taken = TakeElements(std::span(partial_).first(element)); !taken.ok()) {
        return taken;
      }
    }
    const size_t whole = RoundDown(mine.size(), element);
    if (absl::Status taken = TakeElements(mine.first(whole)); !taken.ok()) return taken;
    mine = mine.subspan(whole);
    if (!mine.empty()) {
      std::memcpy(partial_.data(), mine.data(), mine.size());
      partial_bytes_ = mine.size();
    }
  }
  return absl::OkStatus();
}

absl::Status Session::TakeElements(std::span<const std::byte> whole) {
  if (whole.empty()) return absl::OkStatus();
  if (!std::exchange(device_chosen_, true)) {
    if (absl::Status chosen = ChooseDevice(); !chosen.ok()) return chosen;
  }
  if (device_ != nullptr) {
    const absl::Status taken = device_->Take(whole);
    if (taken.ok()) return absl::OkStatus();
    if (absl::Status goes_on = FallBack(taken); !goes_on.ok()) return goes_on;
    if (whole.empty()) return absl::OkStatus();
  }
  const DType dtype = spec_.tensors[position_.tensor].dtype;
  measured_->Add(whole.data(), whole.size() / ElementSize(dtype));
  return gradient_ == nullptr ? absl::OkStatus() : Keep(dtype, whole);
}

absl::Status Session::Keep(DType dtype, std::span<const std::byte> elements) {
  if (!gradient_->Append(elements, ElementSize(dtype))) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the system has no memory left to keep more than %d bytes of the gradient, though "
        "--memory-budget allows them; lower it, or use reply REPLY_COEFFICIENT, which keeps none",
        gradient_->size()));
  }
  if (kept_.empty() || kept_.back().dtype != dtype) kept_.push_back({dtype, 0});
  kept_.back().bytes += elements.size();
  return absl::OkStatus();
}

absl::Status Session::ChooseDevice() {
  if (means_.devices == nullptr || shared_ != nullptr || !DevicesMeasure(spec_.norm_type)) {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<DevicePart>> device =
      DevicePart::Open(*means_.devices, spec_, keeps_data(), *measured_);
  if (device.ok() && *device != nullptr) {
    device_ = *std::move(device);
    result_.mutable_norm()->set_backend(std::string(device_->name()));
    return absl::OkStatus();
  }
  if (device.ok() || means_.host_on_device_error) {
    fell_back_ = true;
    return absl::OkStatus();
  }
  if (!absl::IsResourceExhausted(device.status())) return device.status();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "no device can take a gradient of %d bytes now: %s. Try later; with --on-gpu-error=cpu the "
      "host takes such calls",
      spec_.gradient_bytes, device.status().message()));
}

absl::Status Session::FallBack(const absl::Status& failure) {
  if (!means_.host_on_device_error || !device_->slots_hold_all()) return Lost(failure);
  absl::Status taken = device_->TakeBack(
      [this](DType dtype, std::span<const std::byte> elements) { return Keep(dtype, elements); });
  fell_back_ = true;
  LeaveDevice();
  return taken;
}

absl::Status Session::HandOver() {
  if (absl::Status finished = device_->Finish(); !finished.ok()) return FallBack(finished);
  absl::Status kept;
  const absl::Status brought =
      device_->BringBack([&](DType dtype, std::span<const std::byte> elements) {
        kept = Keep(dtype, elements);
        return kept;
      });
  if (!brought.ok()) return kept.ok() ? Lost(brought) : kept;
  LeaveDevice();
  return absl::OkStatus();
}

void Session::LeaveDevice() {
  device_.reset();
  result_.mutable_norm()->set_backend(std::string(means_.backend.name()));
}

absl::Status Session::Lost(const absl::Status& failure) const {
  if (!means_.host_on_device_error) return failure;
  return absl::UnavailableError(
      absl::StrFormat("%s failed with the gradient's bytes, %d so far, that were kept on it: %s. "
                      "Send the call again",
                      device_->name(), received_bytes_, failure.message()));
}

absl::Status Session::PassThrough(std::span<const std::byte> bytes, std::byte* out,
                                  size_t* written) {
  *written = 0;
  if (absl::Status may = CheckMayReceive(bytes.size()); !may.ok()) return may;
  received_bytes_ += bytes.size();
  Advance(bytes.size());
  if (!result_.gradient_follows()) return absl::OkStatus();

  std::memcpy(out, partial_.data(), partial_bytes_);
  if (!bytes.empty()) std::memcpy(out + partial_bytes_, bytes.data(), bytes.size());
  const uint64_t available = partial_bytes_ + bytes.size();

  // What is complete: all but the bytes of the last element where it is cut.
  uint64_t complete = 0;
  uint64_t run_byte = scale_byte_;
  for (size_t run = scale_run_; run < spec_.runs.size() && complete < available; ++run) {
    const uint64_t in_run = std::min(available - complete, spec_.runs[run].bytes - run_byte);
    complete += RoundDown(in_run, ElementSize(spec_.runs[run].dtype));
    if (run_byte + in_run < spec_.runs[run].bytes) break;
    run_byte = 0;
  }
  partial_bytes_ = available - complete;
  std::memcpy(partial_.data(), out + complete, partial_bytes_);
  Scale(spec_.runs, {out, complete});
  *written = complete;
  return absl::OkStatus();
}

absl::Status Session::Shared(const v1::SharedRanges& ranges) {
  if (means_.regions == nullptr) {
    return absl::UnimplementedError(
        "shared ranges came, but this server has no memory socket (--memory-socket) and so no "
        "shared memory; send the bytes as data");
  }
  if (absl::Status may = CheckMayReceive(0); !may.ok()) return may;
  const uint64_t cut =
      position_.byte == 0 ? 0 : position_.byte % ElementSize(spec_.tensors[position_.tensor].dtype);
  if (cut != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared ranges came after data that ends with %d bytes of an element; "
                        "ranges hold whole elements",
                        cut));
  }
  if (shared_ == nullptr) {
    shared_ =
        std::make_unique<SharedPart>(*means_.regions, spec_, means_.backend, means_.max_ranges,
                                     clips_ && spec_.reply != v1::REPLY_COEFFICIENT);
  }
  uint64_t bytes = 0;
  if (absl::Status checked = shared_->CheckRanges(ranges, &bytes); !checked.ok()) return checked;
  if (absl::Status may = CheckMayReceive(bytes); !may.ok()) return may;
  if (absl::Status planned = shared_->Plan(position_); !planned.ok()) return planned;
  if (device_ != nullptr) {
    if (absl::Status handed_over = HandOver(); !handed_over.ok()) return handed_over;
  }
  const DeviceMemory* const memory = shared_->device_memory();
  if (memory != nullptr && (passes_through() || DevicesMeasure(spec_.norm_type))) {
    result_.mutable_norm()->set_backend(std::string(memory->device()));
  }
  received_bytes_ += bytes;
  work_ = Work::kMeasure;
  work_tasks_ = shared_->tasks().size();
  work_bytes_ = bytes;
  Advance(bytes);
  if (passes_through()) {
    SkipRuns(bytes);
    ScaleShared();
  }
  return absl::OkStatus();
}

void Session::Advance(uint64_t bytes) {
  while (bytes > 0) {
    const uint64_t missing = spec_.tensors[position_.tensor].bytes() - position_.byte;
    const uint64_t step = std::min(bytes, missing);
    position_.byte += step;
    bytes -= step;
    if (step == missing) position_ = {position_.tensor + 1, 0};
  }
}

void Session::SkipRuns(uint64_t bytes) {
  while (bytes > 0) {
    const uint64_t step = std::min(bytes, spec_.runs[scale_run_].bytes - scale_byte_);
    scale_byte_ += step;
    bytes -= step;
    if (scale_byte_ == spec_.runs[scale_run_].bytes) {
      ++scale_run_;
      scale_byte_ = 0;
    }
  }
}

void Session::ScaleShared() {
  const bool scales = shared_ != nullptr && shared_->writes() && ChangesAnything();
  work_ = scales ? Work::kScale : Work::kNone;
  work_tasks_ = scales ? shared_->scale_tasks() : 0;
  // With a given norm, of the last message alone: the others' elements are scaled already.
  if (scales && !passes_through()) work_bytes_ = shared_->bytes();
}

void Session::RunTask(size_t index) {
  if (abandoned_.load(std::memory_order_relaxed)) return;
  if (work_ == Work::kMeasure) {
    shared_->Measure(index);
  } else {
    shared_->Scale(index, result_.coefficient(), assign_zero_);
  }
}

absl::Status Session::FinishWork() {
  if (abandoned_.load(std::memory_order_relaxed)) {
    return absl::CancelledError("the caller cancelled or went away");
  }
  if (shared_ == nullptr) return absl::OkStatus();
  if (absl::Status whole = shared_->CheckWork(work_ == Work::kScale); !whole.ok()) return whole;
  if (work_ == Work::kMeasure) {
    for (size_t task = 0; task < shared_->tasks().size(); ++task) TakeMeasured(task);
  }
  // Of what has been measured only what may be scaled later is needed.
  if (work_ != Work::kMeasure || !shared_->writes()) shared_->ForgetPieces();
  work_ = Work::kNone;
  return absl::OkStatus();
}

void Session::TakeMeasured(size_t index) {
  const SharedPart::Task& task = shared_->tasks()[index];
  if (task.kind == SharedPart::Kind::kTensors) {
    return measured_->AddTensors(shared_->measured(index), task.tensor, task.pieces);
  }
  const Piece& piece = shared_->pieces(task).front();
  if (task.kind == SharedPart::Kind::kOpen) {
    return measured_->Add(shared_->open_elements(index), piece.count);
  }
  const PiecesNorm& found = shared_->measured(index);
  measured_->AddBlocks(found.sum, found.pieces.front(), piece.count);
}

absl::Status Session::NoPayload() const {
  return absl::InvalidArgumentError(
      "a message came without payload; it must hold start, data or shared");
}

absl::Status Session::HalfClose() {
  if (!started_) {
    return absl::InvalidArgumentError("the call ended without a start message");
  }
  if (received_bytes_ < spec_.gradient_bytes) {
    uint64_t byte = received_bytes_;
    size_t at = 0;
    for (; byte >= spec_.tensors[at].bytes(); ++at) byte -= spec_.tensors[at].bytes();
    const TensorDeclaration& tensor = spec_.tensors[at];
    return absl::InvalidArgumentError(absl::StrFormat(
        "the call ended after %d of the %d declared bytes: tensor %s has %d of %d", received_bytes_,
        spec_.gradient_bytes, DescribeTensor(tensor.name, at), byte, tensor.bytes()));
  }
  if (passes_through()) return absl::OkStatus();
  if (device_ != nullptr) {
    if (absl::Status finished = device_->Finish(); !finished.ok()) {
      if (absl::Status goes_on = FallBack(finished); !goes_on.ok()) return goes_on;
    } else if (!device_->keeps()) {
      device_.reset();
    }
  }
  measured_->End();
  if (spec_.group.has_value()) return absl::OkStatus();
  const v1::NormResult& norm = result_.norm();
  return Decide(measured_->total().Norm(spec_.rule.pre_scale), norm.nonfinite_elements(),
                Shortened(norm.first_nonfinite()));
}

Contribution Session::contribution() const {
  return {measured_->total(), result_.norm().nonfinite_elements(),
          Shortened(result_.norm().first_nonfinite())};
}

absl::Status Session::Conclude(const Outcome& outcome) {
  return Decide(outcome.total.Norm(spec_.rule.pre_scale), outcome.nonfinite_elements,
                outcome.first_nonfinite);
}

absl::Status Session::Decide(double total_norm, uint64_t nonfinite, const std::string& first) {
  v1::NormResult& norm = *result_.mutable_norm();
  decided_ = true;
  norm.set_total_norm(total_norm);
  norm.set_group_nonfinite_elements(nonfinite);
  if (spec_.rule.nonfinite == OnNonfinite::kError && !std::isfinite(total_norm)) {
    if (passes_through()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "the given total_norm is %g, and nonfinite is NONFINITE_ERROR", total_norm));
    }
    if (nonfinite == 0) {
      return absl::FailedPreconditionError(
          absl::StrFormat("the total norm is %g though all elements are finite: it is beyond the "
                          "largest double, and nonfinite is NONFINITE_ERROR",
                          total_norm));
    }
    return absl::FailedPreconditionError(absl::StrFormat(
        "the total norm is %g, and nonfinite is NONFINITE_ERROR: %d elements are NaN or infinite, "
        "the first of them %s",
        total_norm, nonfinite, first));
  }
  const ClipDecision decision = gradclip::Decide(spec_.rule, total_norm);
  result_.set_coefficient(decision.coefficient);
  result_.set_clipped(decision.clipped);
  result_.set_skipped(decision.skipped);
  assign_zero_ = decision.assign_zero;
  // Where all is shared no bytes follow.
  const bool sent_as_data = shared_ == nullptr || shared_->bytes() < received_bytes_;
  result_.set_gradient_follows(
      sent_as_data && (spec_.reply == v1::REPLY_GRADIENT ||
                       (spec_.reply == v1::REPLY_GRADIENT_IF_CHANGED && ChangesAnything())));
  if (!result_.gradient_follows()) {
    device_.reset();  // others may need it while this answer is on its way
  } else if (device_ != nullptr) {
    device_->BeginReply(result_.coefficient(), assign_zero_);
  }
  return absl::OkStatus();
}

bool Session::ChangesAnything() const {
  return std::any_of(spec_.runs.begin(), spec_.runs.end(), [&](const DTypeRun& run) {
    return assign_zero_ || !LeavesUnchanged(run.dtype, result_.coefficient());
  });
}

bool Session::has_segment() const {
  if (device_ != nullptr) return device_->has_segment();
  return gradient_ != nullptr && next_segment_ < gradient_->segments().size();
}

absl::StatusOr<ReplySegment> Session::NextSegment() {
  if (device_ != nullptr) {
    absl::StatusOr<ReplySegment> segment = device_->NextSegment();
    if (!segment.ok()) return Lost(segment.status());
    return segment;
  }
  const std::span<std::byte> segment = gradient_->segments()[next_segment_++];
  Scale(kept_, segment);
  return ReplySegment{segment, gradient_};
}

void Session::Scale(std::span<const DTypeRun> runs, std::span<std::byte> elements) {
  while (!elements.empty()) {
    const DTypeRun& run = runs[scale_run_];
    const size_t bytes = std::min<uint64_t>(elements.size(), run.bytes - scale_byte_);
    if (assign_zero_) {
      std::memset(elements.data(), 0, bytes);
    } else if (!LeavesUnchanged(run.dtype, result_.coefficient())) {
      means_.backend.Scale(run.dtype, elements.data(), bytes / ElementSize(run.dtype),
                           result_.coefficient());
    }
    elements = elements.subspan(bytes);
    scale_byte_ += bytes;
    if (scale_byte_ == run.bytes) {
      ++scale_run_;
      scale_byte_ = 0;
    }
  }
}

}  // namespace gradclip
