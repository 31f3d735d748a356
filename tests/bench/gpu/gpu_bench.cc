#include "tests/bench/gpu/gpu_bench.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/backend/cuda/cuda_devices.h"
#include "tests/bench/gpu/device_clock.h"

namespace gradclip::bench {
namespace {

// The devices are numbered as they are listed; where there are none, one entry says why.
absl::StatusOr<size_t> Choose(const std::vector<BackendChoice>& choices,
                              std::optional<int> number) {
  if (number.has_value() && choices.front().name != "cuda") {
    const auto index = static_cast<size_t>(*number);
    if (*number < 0 || index >= choices.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("there is no device ", *number, ", but 0 to ", choices.size() - 1));
    }
    if (choices[index].usable) return index;
    return absl::FailedPreconditionError(
        absl::StrCat(choices[index].name, " cannot be used: ", choices[index].detail));
  }
  const auto usable = std::find_if(choices.begin(), choices.end(),
                                   [](const BackendChoice& choice) { return choice.usable; });
  if (usable != choices.end()) return static_cast<size_t>(usable - choices.begin());
  return absl::FailedPreconditionError(
      absl::StrCat("there is no GPU that can be used here: ", choices.front().detail));
}

}  // namespace

absl::Status RunGpu(const Settings& settings, std::optional<int> number, Report& report) {
  const std::vector<BackendChoice> choices = ListCudaDevices();
  const absl::StatusOr<size_t> chosen = Choose(choices, number);
  if (!chosen.ok()) return chosen.status();
  const auto device = static_cast<int>(*chosen);
  CudaCalls calls;
  cudaDeviceProp properties;
  calls.Ok("cudaSetDevice", cudaSetDevice(device)) &&
      calls.Ok("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
  if (absl::Status ready = StatusOf(calls); !ready.ok()) return ready;

  report.BeginMachine(absl::StrCat(choices[*chosen].name, ": ", choices[*chosen].detail),
                      settings.rounds, settings.quick);
  // Of Turing and of Ampere's desktop line the units bind (server/backend/cuda/PERFORMANCE.md).
  const std::pair capability(properties.major, properties.minor);
  GpuBench bench = {
      .settings = settings,
      .report = report,
      .number = device,
      .multiprocessors = properties.multiProcessorCount,
      .bound_by_memory = capability != std::pair(7, 5) && capability != std::pair(8, 6)};
  if (absl::Status run = RunGpuKernels(bench); !run.ok()) return run;
  if (absl::Status run = RunGpuInPlace(bench); !run.ok()) return run;
  return RunGpuStreaming(bench);
}

}  // namespace gradclip::bench
