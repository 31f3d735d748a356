// How fast the CUDA backend is on one GPU, each figure beside a plain copy that was measured in the
// same rounds. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_GPU_GPU_BENCH_H_
#define GRADCLIP_TESTS_BENCH_GPU_GPU_BENCH_H_

#include <optional>

#include "absl/status/status.h"
#include "tests/bench/measure.h"
#include "tests/bench/report.h"

namespace gradclip::bench {

// All sections, on the device of this number, or else on the first that can be used.
// FAILED_PRECONDITION where there is none, and why; UNAVAILABLE with CUDA's error where one fails.
absl::Status RunGpu(const Settings& settings, std::optional<int> number, Report& report);

// What a section gets. The device is current.
struct GpuBench {
  const Settings& settings;
  Report& report;
  const int number;
  const int multiprocessors;
  // Whether norms are bound by the device's memory, and not by its units for double precision.
  const bool bound_by_memory;
};

// Norms and scaling of memory of the device, beside a copy that moves as many bytes there.
absl::Status RunGpuKernels(GpuBench& bench);
// Gradients that are measured and clipped where they are, with all that the host does, beside such
// a copy.
absl::Status RunGpuInPlace(GpuBench& bench);
// Gradients that come from the host, beside plain copies of as many bytes from pinned memory.
absl::Status RunGpuStreaming(GpuBench& bench);

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_GPU_GPU_BENCH_H_
