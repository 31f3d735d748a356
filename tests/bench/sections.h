// The benchmarks, one function a section, each in a file of its own.
#ifndef GRADCLIP_TESTS_BENCH_SECTIONS_H_
#define GRADCLIP_TESTS_BENCH_SECTIONS_H_

#include "absl/status/status.h"
#include "tests/bench/measure.h"
#include "tests/bench/report.h"
#include "tests/bench/servers.h"

namespace gradclip::bench {

// What a section gets: how much to measure, where its figures go, and a folder for servers.
struct Bench {
  const Settings settings;
  Report& report;
  const ScratchFolder& folder;
};

absl::Status RunKernels(Bench& bench);
absl::Status RunRpcs(Bench& bench);
absl::Status RunLatency(Bench& bench);
absl::Status RunParallel(Bench& bench);
absl::Status RunMemory(Bench& bench);
absl::Status RunPyTorch(Bench& bench);
absl::Status RunShared(Bench& bench);
absl::Status RunGroups(Bench& bench);
absl::Status RunRanks(Bench& bench);

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_SECTIONS_H_
