// How near norm and scaling on the device come to the speed of its memory.
#include "server/backend/cuda/kernels.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/backend/element.h"
#include "tests/bench/gpu/device_clock.h"
#include "tests/bench/gpu/device_gradient.h"
#include "tests/bench/gpu/gpu_bench.h"

namespace gradclip::bench {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

struct Norm {
  NormKind kind;
  const char* name;
};
constexpr Norm kNorms[] = {{NormKind::kSquares, "p = 2"},
                           {NormKind::kMagnitudes, "p = 1"},
                           {NormKind::kLargest, "p = inf"}};

// One pass is over in some 100 us, of which the events' own time must be little.
constexpr int kPassesInRound = 5;
constexpr double kCoefficient = 0.999;
// Where memory binds, what a copy of as many bytes takes is what is left to come to.
constexpr double kOfACopy = 0.9;

class GpuKernels {
 public:
  static absl::StatusOr<std::unique_ptr<GpuKernels>> Make(GpuBench& bench, size_t room) {
    std::unique_ptr<GpuKernels> made(new GpuKernels(bench));
    if (absl::Status begun = made->Begin(room); !begun.ok()) return begun;
    return made;
  }

  // What is measured and scaled from now on: one tensor over all of the memory,
  absl::Status Fill(DType dtype) {
    return FillTensors(dtype, {gradient_->room() / ElementSize(dtype)});
  }

  // or tensors of so many elements. REQUIRES: they have room.
  absl::Status FillTensors(DType dtype, const std::vector<uint64_t>& elements) {
    if (absl::Status filled = gradient_->Fill(dtype, elements); !filled.ok()) return filled;
    const std::span<const DeviceRun> runs = gradient_->runs();
    absl::StatusOr<DeviceBytes> table = AllocateOnDevice(runs.size_bytes());
    if (!table.ok()) return table.status();
    table_ = *std::move(table);
    runs_ = {.runs = reinterpret_cast<const DeviceRun*>(table_.get()),
             .count = static_cast<uint32_t>(runs.size()),
             .blocks = gradient_->blocks()};
    CudaCalls calls;
    calls.Ok("cudaMemcpy",
             cudaMemcpy(table_.get(), runs.data(), runs.size_bytes(), cudaMemcpyHostToDevice));
    return StatusOf(calls);
  }

  absl::Status CompareNorm(const std::string& what, NormKind kind, std::optional<Goal> goal) {
    auto* const tally = reinterpret_cast<DeviceTally*>(tally_.get());
    return Add(what, gradient_->bytes(), goal, [&](CudaCalls& calls) {
      return calls.Ok("cudaLaunchKernelEx", LaunchMeasure(clock_->stream(), bench_.multiprocessors,
                                                          kind, runs_, tally, nullptr));
    });
  }

  absl::Status CompareScale(const std::string& what, std::optional<Goal> goal) {
    return Add(what, 2 * gradient_->bytes(), goal, [&](CudaCalls& calls) {
      return calls.Ok("cudaLaunchKernelEx",
                      LaunchScale(clock_->stream(), bench_.multiprocessors, runs_,
                                  {.coefficient = kCoefficient, .dtypes = ~0u}));
    });
  }

 private:
  explicit GpuKernels(GpuBench& bench) : bench_(bench) {}

  absl::Status Begin(size_t room) {
    absl::StatusOr<std::unique_ptr<DeviceGradient>> gradient = DeviceGradient::Make(room);
    if (!gradient.ok()) return gradient.status();
    gradient_ = *std::move(gradient);
    absl::StatusOr<std::unique_ptr<DeviceClock>> clock = DeviceClock::Make();
    if (!clock.ok()) return clock.status();
    clock_ = *std::move(clock);
    absl::StatusOr<DeviceBytes> tally = AllocateOnDevice(sizeof(DeviceTally));
    if (!tally.ok()) return tally.status();
    tally_ = *std::move(tally);
    // All passes add to it; what they add up to is asked by nobody.
    const DeviceTally empty = EmptyTally();
    CudaCalls calls;
    calls.Ok("cudaMemcpy", cudaMemcpy(tally_.get(), &empty, sizeof empty, cudaMemcpyHostToDevice));
    return StatusOf(calls);
  }

  // moved: bytes that a pass reads and writes.
  absl::Status Add(const std::string& what, uint64_t moved, std::optional<Goal> goal,
                   absl::FunctionRef<bool(CudaCalls&)> pass) {
    const int passes = bench_.settings.quick ? 1 : kPassesInRound;
    const auto time = [&](absl::FunctionRef<bool(CudaCalls&)> queue) {
      return clock_->TimeOf([&](CudaCalls& calls) {
        bool ok = true;
        for (int i = 0; ok && i < passes; ++i) ok = queue(calls);
        return ok;
      });
    };
    const auto copy = [&](CudaCalls& calls) {
      return gradient_->QueueCopy(calls, clock_->stream(), moved);
    };
    const absl::StatusOr<Comparison> comparison = Compare(
        bench_.settings.rounds, [&] { return time(pass); }, [&] { return time(copy); });
    if (!comparison.ok()) return comparison.status();
    Row row =
        RateRow(what, "copy on the device", static_cast<uint64_t>(passes) * moved, *comparison);
    row.goal = goal;
    bench_.report.Add(row);
    return absl::OkStatus();
  }

  GpuBench& bench_;
  std::unique_ptr<DeviceGradient> gradient_;
  std::unique_ptr<DeviceClock> clock_;
  DeviceBytes tally_;
  DeviceBytes table_;
  DeviceRuns runs_;
};

}  // namespace

absl::Status RunGpuKernels(GpuBench& bench) {
  // Far more than a device's caches hold; GPT-2 124M in F32 has room in it.
  const size_t room = size_t{bench.settings.quick ? 1u : 512u} << 20;
  bench.report.BeginSection(
      "kernels", absl::StrFormat("GB/s of the device's memory, read and written, %d MiB; beside a "
                                 "copy there that moves as many bytes",
                                 room >> 20));
  absl::StatusOr<std::unique_ptr<GpuKernels>> made = GpuKernels::Make(bench, room);
  if (!made.ok()) return made.status();
  GpuKernels& kernels = **made;
  const std::optional<Goal> near_copy = AtLeast(kOfACopy);
  for (const DType dtype : kDTypes) {
    if (absl::Status filled = kernels.Fill(dtype); !filled.ok()) return filled;
    for (const Norm& norm : kNorms) {
      const bool judged = norm.kind == NormKind::kSquares && bench.bound_by_memory;
      absl::Status compared =
          kernels.CompareNorm(absl::StrFormat("norm %s, %s", Name(dtype), norm.name), norm.kind,
                              judged ? near_copy : std::nullopt);
      if (!compared.ok()) return compared;
    }
    absl::Status compared =
        kernels.CompareScale(absl::StrFormat("scale %s", Name(dtype)), near_copy);
    if (!compared.ok()) return compared;
  }
  for (const TensorSizes& tensors :
       {Gpt2Sizes(bench.settings.quick),
        TensorSizes{"4,000 tensors of 64", std::vector<uint64_t>(4000, 64)}}) {
    absl::Status filled = kernels.FillTensors(DType::kFloat32, tensors.elements);
    if (!filled.ok()) return filled;
    absl::Status compared = kernels.CompareNorm(
        absl::StrFormat("norm F32, %s, p = 2", tensors.name), NormKind::kSquares, std::nullopt);
    if (!compared.ok()) return compared;
    compared = kernels.CompareScale(absl::StrFormat("scale F32, %s", tensors.name), std::nullopt);
    if (!compared.ok()) return compared;
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
