// How near norm and scaling on the device come to the speed of its memory.
#include "server/backend/cuda/kernels.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/backend/element.h"
#include "tests/bench/elements.h"
#include "tests/bench/gpu/device_clock.h"
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
// Elements come to the device in pieces of so many bytes.
constexpr size_t kFillBytes = size_t{1} << 20;

class GpuKernels {
 public:
  static absl::StatusOr<std::unique_ptr<GpuKernels>> Make(GpuBench& bench, size_t bytes) {
    std::unique_ptr<GpuKernels> made(new GpuKernels(bench, bytes));
    if (absl::Status begun = made->Begin(); !begun.ok()) return begun;
    return made;
  }

  // What is measured and scaled from now on: one tensor over all of the memory,
  absl::Status Fill(DType dtype) { return FillTensors(dtype, {bytes_ / ElementSize(dtype)}); }

  // or tensors of so many elements, one after another. REQUIRES: they have room.
  absl::Status FillTensors(DType dtype, const std::vector<uint64_t>& elements) {
    FillElements(dtype, {staging_.get(), kFillBytes});
    CudaCalls calls;
    bool ok = true;
    for (size_t at = 0; ok && at < bytes_; at += kFillBytes) {
      ok = calls.Ok("cudaMemcpyAsync",
                    cudaMemcpyAsync(gradient_.get() + at, staging_.get(), kFillBytes,
                                    cudaMemcpyHostToDevice, clock_->stream()));
    }
    ok = ok && calls.Ok("cudaStreamSynchronize", cudaStreamSynchronize(clock_->stream()));

    std::vector<DeviceRun> table;
    runs_ = {};
    filled_ = 0;
    for (const uint64_t count : elements) {
      table.push_back({.address = reinterpret_cast<uint64_t>(gradient_.get() + filled_),
                       .elements = count,
                       .first_block = runs_.blocks,
                       .dtype = dtype});
      runs_.blocks += (count + kBlockElements - 1) / kBlockElements;
      filled_ += count * ElementSize(dtype);
    }
    const size_t table_bytes = table.size() * sizeof(DeviceRun);
    absl::StatusOr<DeviceBytes> on_device = AllocateOnDevice(table_bytes);
    if (!on_device.ok()) return on_device.status();
    table_ = *std::move(on_device);
    runs_.runs = reinterpret_cast<const DeviceRun*>(table_.get());
    runs_.count = static_cast<uint32_t>(table.size());
    if (ok) {
      calls.Ok("cudaMemcpy",
               cudaMemcpy(table_.get(), table.data(), table_bytes, cudaMemcpyHostToDevice));
    }
    return StatusOf(calls);
  }

  absl::Status CompareNorm(const std::string& what, NormKind kind, std::optional<Goal> goal) {
    auto* const tally = reinterpret_cast<DeviceTally*>(tally_.get());
    const auto measure = [&](CudaCalls& calls) {
      return calls.Ok("cudaLaunchKernelEx", LaunchMeasure(clock_->stream(), bench_.multiprocessors,
                                                          kind, runs_, tally, nullptr));
    };
    return Add(what, filled_, goal, measure);
  }

  absl::Status CompareScale(const std::string& what, std::optional<Goal> goal) {
    const auto scale = [&](CudaCalls& calls) {
      return calls.Ok("cudaLaunchKernelEx",
                      LaunchScale(clock_->stream(), bench_.multiprocessors, runs_,
                                  {.coefficient = kCoefficient, .dtypes = ~0u}));
    };
    return Add(what, 2 * filled_, goal, scale);
  }

 private:
  GpuKernels(GpuBench& bench, size_t bytes) : bench_(bench), bytes_(bytes) {}

  absl::Status Begin() {
    for (const auto& [memory, bytes] :
         {std::pair(&gradient_, bytes_), {&copy_, bytes_}, {&tally_, sizeof(DeviceTally)}}) {
      absl::StatusOr<DeviceBytes> allocated = AllocateOnDevice(bytes);
      if (!allocated.ok()) return allocated.status();
      *memory = *std::move(allocated);
    }
    absl::StatusOr<PinnedBytes> staging = AllocatePinned(kFillBytes);
    if (!staging.ok()) return staging.status();
    staging_ = *std::move(staging);
    absl::StatusOr<std::unique_ptr<DeviceClock>> clock = DeviceClock::Make();
    if (!clock.ok()) return clock.status();
    clock_ = *std::move(clock);
    // All passes add to it; what they add up to is asked by nobody.
    const DeviceTally empty = EmptyTally();
    CudaCalls calls;
    calls.Ok("cudaMemcpy", cudaMemcpy(tally_.get(), &empty, sizeof empty, cudaMemcpyHostToDevice));
    return StatusOf(calls);
  }

  // moved: bytes that a pass reads and writes. A copy reads half as many, and writes them.
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
      return calls.Ok("cudaMemcpyAsync",
                      cudaMemcpyAsync(copy_.get(), gradient_.get(), moved / 2,
                                      cudaMemcpyDeviceToDevice, clock_->stream()));
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
  const size_t bytes_;
  PinnedBytes staging_;
  DeviceBytes gradient_;
  DeviceBytes copy_;
  DeviceBytes tally_;
  DeviceBytes table_;
  DeviceRuns runs_;
  uint64_t filled_ = 0;  // bytes of the runs
  std::unique_ptr<DeviceClock> clock_;
};

std::vector<uint64_t> ElementsOf(const std::vector<std::vector<int64_t>>& shapes) {
  std::vector<uint64_t> elements;
  for (const std::vector<int64_t>& shape : shapes) {
    uint64_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<uint64_t>(extent);
    elements.push_back(count);
  }
  return elements;
}

}  // namespace

absl::Status RunGpuKernels(GpuBench& bench) {
  // Far more than a device's caches hold; GPT-2 124M in F32 has room in it.
  const size_t bytes = size_t{bench.settings.quick ? 1u : 512u} << 20;
  bench.report.BeginSection(
      "kernels", absl::StrFormat("GB/s of the device's memory, read and written, %d MiB; beside a "
                                 "copy there that moves as many bytes",
                                 bytes >> 20));
  absl::StatusOr<std::unique_ptr<GpuKernels>> made = GpuKernels::Make(bench, bytes);
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
  const std::pair<std::string, std::vector<uint64_t>> gradients[] = {
      bench.settings.quick ? std::pair("2 tensors", std::vector<uint64_t>{768, 768 * 64})
                           : std::pair("GPT-2 124M's 148 tensors", ElementsOf(Gpt2Shapes())),
      {"4,000 tensors of 64", std::vector<uint64_t>(4000, 64)}};
  for (const auto& [what, elements] : gradients) {
    if (absl::Status filled = kernels.FillTensors(DType::kFloat32, elements); !filled.ok()) {
      return filled;
    }
    absl::Status compared = kernels.CompareNorm(absl::StrCat("norm F32, ", what, ", p = 2"),
                                                NormKind::kSquares, std::nullopt);
    if (!compared.ok()) return compared;
    compared = kernels.CompareScale(absl::StrCat("scale F32, ", what), std::nullopt);
    if (!compared.ok()) return compared;
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
