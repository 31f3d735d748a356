// What it takes in all to measure and clip a gradient where it is: launches, waiting, and the
// host's decision between norm and scaling.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/backend/cuda/cuda_in_place.h"
#include "server/backend/element.h"
#include "server/norm/norm_partial.h"
#include "tests/bench/gpu/device_clock.h"
#include "tests/bench/gpu/device_gradient.h"
#include "tests/bench/gpu/gpu_bench.h"

namespace gradclip::bench {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16};
constexpr double kCoefficient = 0.999;

class GpuInPlace {
 public:
  static absl::StatusOr<std::unique_ptr<GpuInPlace>> Make(GpuBench& bench) {
    std::unique_ptr<GpuInPlace> made(new GpuInPlace(bench));
    if (absl::Status begun = made->Begin(); !begun.ok()) return begun;
    return made;
  }

  absl::Status Compare(DType dtype) {
    absl::Status filled = gradient_->Fill(dtype, tensors_.elements);
    if (!filled.ok()) return filled;
    absl::Status added = Add(absl::StrFormat("norm %s, %s", Name(dtype), tensors_.name),
                             gradient_->bytes(), [&] { return Measure(); });
    if (!added.ok()) return added;
    return Add(absl::StrFormat("clipped %s, %s", Name(dtype), tensors_.name),
               3 * gradient_->bytes(), [&] {
                 if (absl::Status measured = Measure(); !measured.ok()) return measured;
                 return in_place_->Scale(gradient_->runs(), kCoefficient, /*assign_zero=*/false);
               });
  }

 private:
  explicit GpuInPlace(GpuBench& bench) : bench_(bench), tensors_(Gpt2Sizes(bench.settings.quick)) {}

  absl::Status Begin() {
    // Of the device's memory, for what is found there.
    constexpr uint64_t kBudget = 4 * sizeof(DevicePiece);
    absl::StatusOr<std::unique_ptr<CudaDevice>> device =
        CudaDevice::Open(bench_.number, kBudget, nullptr);
    if (!device.ok()) return device.status();
    device_ = *std::move(device);
    absl::StatusOr<std::unique_ptr<CudaInPlace>> in_place = CudaInPlace::Open(*device_);
    if (!in_place.ok()) return in_place.status();
    in_place_ = *std::move(in_place);
    const size_t room = size_t{bench_.settings.quick ? 1u : 512u} << 20;
    absl::StatusOr<std::unique_ptr<DeviceGradient>> gradient = DeviceGradient::Make(room);
    if (!gradient.ok()) return gradient.status();
    gradient_ = *std::move(gradient);
    absl::StatusOr<std::unique_ptr<DeviceClock>> clock = DeviceClock::Make();
    if (!clock.ok()) return clock.status();
    clock_ = *std::move(clock);
    return absl::OkStatus();
  }

  absl::Status Measure() {
    NormPartial norm(2);
    return in_place_->Measure(gradient_->runs(), NormKind::kSquares, /*per_block=*/false,
                              [&](const DeviceFound& found) { norm.AddTally(*found.tally); });
  }

  // moved: bytes that the work reads and writes.
  absl::Status Add(const std::string& what, uint64_t moved,
                   absl::FunctionRef<absl::Status()> work) {
    const auto copy = [&] {
      return TimeOf([&] {
        CudaCalls calls;
        gradient_->QueueCopy(calls, clock_->stream(), moved) &&
            calls.Ok("cudaStreamSynchronize", cudaStreamSynchronize(clock_->stream()));
        return StatusOf(calls);
      });
    };
    const absl::StatusOr<Comparison> comparison = bench::Compare(
        bench_.settings.rounds, [&] { return TimeOf(work); }, copy);
    if (!comparison.ok()) return comparison.status();
    bench_.report.Add(RateRow(what, "copy on the device", moved, *comparison));
    return absl::OkStatus();
  }

  GpuBench& bench_;
  const TensorSizes tensors_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<CudaInPlace> in_place_;
  std::unique_ptr<DeviceGradient> gradient_;
  std::unique_ptr<DeviceClock> clock_;
};

}  // namespace

absl::Status RunGpuInPlace(GpuBench& bench) {
  bench.report.BeginSection(
      "in place",
      "GB/s of the device's memory, read and written, by the host's clock; beside a copy there "
      "that moves as many bytes");
  absl::StatusOr<std::unique_ptr<GpuInPlace>> made = GpuInPlace::Make(bench);
  if (!made.ok()) return made.status();
  for (const DType dtype : kDTypes) {
    if (absl::Status compared = (*made)->Compare(dtype); !compared.ok()) return compared;
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
