// What it takes to bring a gradient to the device, measure it there, and bring it back scaled.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/backend/cuda/cuda_devices.h"
#include "server/backend/element.h"
#include "server/norm/norm_partial.h"
#include "tests/bench/elements.h"
#include "tests/bench/gpu/device_clock.h"
#include "tests/bench/gpu/gpu_bench.h"

namespace gradclip::bench {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16};
constexpr double kCoefficient = 0.999;
// Norms hide behind the copies (server/backend/cuda/PERFORMANCE.md).
constexpr double kOfACopy = 0.9;

class GpuStreaming {
 public:
  static absl::StatusOr<std::unique_ptr<GpuStreaming>> Make(GpuBench& bench, size_t slots) {
    std::unique_ptr<GpuStreaming> made(new GpuStreaming(bench, slots));
    if (absl::Status begun = made->Begin(); !begun.ok()) return begun;
    return made;
  }

  absl::Status Compare(DType dtype) {
    dtype_ = dtype;
    FillElements(dtype, {host_.get(), bytes_});
    const std::string name(Name(dtype));
    if (absl::Status added = Add(absl::StrCat("norm ", name, ", elements are in pinned memory"),
                                 {.fills = false, .brings_back = false}, AtLeast(kOfACopy));
        !added.ok()) {
      return added;
    }
    if (absl::Status added = Add(absl::StrCat("norm ", name, ", elements are copied there, too"),
                                 {.fills = true, .brings_back = false}, std::nullopt);
        !added.ok()) {
      return added;
    }
    return Add(absl::StrCat("clipped ", name, ", kept, scaled and brought back"),
               {.fills = false, .brings_back = true}, AtLeast(kOfACopy));
  }

 private:
  struct Way {
    bool fills;        // slots, from other memory, as the server does with what it receives
    bool brings_back;  // what was kept on the device, scaled
  };

  GpuStreaming(GpuBench& bench, size_t slots)
      : bench_(bench), slots_(slots), bytes_(slots * DeviceQueue::kSlotBytes) {}

  absl::Status Begin() {
    absl::StatusOr<std::unique_ptr<Devices>> devices =
        OpenCudaDevices({.devices = {bench_.number}});
    if (!devices.ok()) return devices.status();
    devices_ = *std::move(devices);
    absl::StatusOr<PinnedBytes> host = AllocatePinned(bytes_);
    if (!host.ok()) return host.status();
    host_ = *std::move(host);
    absl::StatusOr<DeviceBytes> device = AllocateOnDevice(bytes_);
    if (!device.ok()) return device.status();
    device_ = *std::move(device);
    absl::StatusOr<std::unique_ptr<DeviceClock>> clock = DeviceClock::Make();
    if (!clock.ok()) return clock.status();
    clock_ = *std::move(clock);
    return absl::OkStatus();
  }

  // The limit: the same bytes, in one piece.
  absl::StatusOr<double> Copy(bool brings_back) {
    return TimeOf([&] {
      CudaCalls calls;
      calls.Ok("cudaMemcpyAsync", cudaMemcpyAsync(device_.get(), host_.get(), bytes_,
                                                  cudaMemcpyHostToDevice, clock_->stream())) &&
          (!brings_back || calls.Ok("cudaMemcpyAsync",
                                    cudaMemcpyAsync(host_.get(), device_.get(), bytes_,
                                                    cudaMemcpyDeviceToHost, clock_->stream()))) &&
          calls.Ok("cudaStreamSynchronize", cudaStreamSynchronize(clock_->stream()));
      return StatusOf(calls);
    });
  }

  absl::Status Measure(DeviceQueue& queue, bool fills) {
    const DeviceRun run = {.elements = DeviceQueue::kSlotBytes / ElementSize(dtype_),
                           .dtype = dtype_};
    NormPartial norm(2);
    const auto take = [&](size_t nth) {
      const absl::StatusOr<DeviceFound> found = queue.Await(nth % queue.slots());
      if (found.ok()) norm.AddTally(*found->tally);
      return found.status();
    };
    for (size_t nth = 0; nth < slots_ + queue.slots(); ++nth) {
      if (nth >= queue.slots()) {
        if (absl::Status taken = take(nth - queue.slots()); !taken.ok()) return taken;
      }
      if (nth >= slots_) continue;
      const size_t slot = nth % queue.slots();
      if (fills) Fill(queue, slot, nth);
      absl::Status measures = queue.Measure(slot, DeviceQueue::kSlotBytes, {&run, 1},
                                            NormKind::kSquares, /*per_block=*/false);
      if (!measures.ok()) return measures;
    }
    // Elements of magnitude [0.5, 1), each of them measured once.
    const double elements = static_cast<double>(slots_ * run.elements);
    const double found = norm.Norm();
    if (found * found >= 0.25 * elements && found * found < elements) return absl::OkStatus();
    return absl::InternalError(absl::StrFormat(
        "the norm is %g, which %.0f elements of magnitude [0.5, 1) cannot have", found, elements));
  }

  absl::Status BringBack(DeviceQueue& queue) {
    for (size_t nth = 0; nth < slots_ + queue.slots(); ++nth) {
      const size_t slot = nth % queue.slots();
      if (nth >= queue.slots() && nth - queue.slots() < slots_) {
        if (absl::Status there = queue.Await(slot).status(); !there.ok()) return there;
      }
      if (nth >= slots_) continue;
      absl::Status scaled = queue.Scale(nth, kCoefficient, /*assign_zero=*/false);
      if (!scaled.ok()) return scaled;
      if (absl::Status fetches = queue.Fetch(nth, slot); !fetches.ok()) return fetches;
    }
    return absl::OkStatus();
  }

  void Fill(DeviceQueue& queue, size_t slot, size_t nth) {
    std::memcpy(queue.slot(slot), host_.get() + nth * DeviceQueue::kSlotBytes,
                DeviceQueue::kSlotBytes);
  }

  absl::Status Add(const std::string& what, Way way, std::optional<Goal> goal) {
    const auto stream = [&]() -> absl::StatusOr<double> {
      absl::StatusOr<std::unique_ptr<DeviceQueue>> opened = devices_->Open(slots_, way.brings_back);
      if (!opened.ok()) return opened.status();
      DeviceQueue& queue = **opened;  // the only one, so that the device is not busy
      for (size_t slot = 0; slot < queue.slots(); ++slot) Fill(queue, slot, slot % slots_);
      return TimeOf([&] {
        absl::Status done = Measure(queue, way.fills);
        if (done.ok() && way.brings_back) done = BringBack(queue);
        return done;
      });
    };
    const absl::StatusOr<Comparison> comparison =
        bench::Compare(bench_.settings.rounds, stream, [&] { return Copy(way.brings_back); });
    if (!comparison.ok()) return comparison.status();
    Row row = RateRow(what, way.brings_back ? "copies there and back" : "copy",
                      way.brings_back ? 2 * bytes_ : bytes_, *comparison);
    row.goal = goal;
    bench_.report.Add(row);
    return absl::OkStatus();
  }

  GpuBench& bench_;
  const size_t slots_;
  const size_t bytes_;
  DType dtype_ = DType::kFloat32;
  std::unique_ptr<Devices> devices_;
  PinnedBytes host_;
  DeviceBytes device_;
  std::unique_ptr<DeviceClock> clock_;
};

}  // namespace

absl::Status RunGpuStreaming(GpuBench& bench) {
  const size_t slots = bench.settings.quick ? 4 : 256;
  bench.report.BeginSection(
      "streaming",
      absl::StrFormat("GB/s to the device and back, %d MiB in slots of %d MiB; beside "
                      "cudaMemcpyAsync of as many bytes of pinned memory",
                      slots * DeviceQueue::kSlotBytes >> 20, DeviceQueue::kSlotBytes >> 20));
  absl::StatusOr<std::unique_ptr<GpuStreaming>> made = GpuStreaming::Make(bench, slots);
  if (!made.ok()) return made.status();
  for (const DType dtype : kDTypes) {
    if (absl::Status compared = (*made)->Compare(dtype); !compared.ok()) return compared;
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
