// Passes over memory on several threads, timed. Pure functions but for SinkOfResults().
#ifndef GRADCLIP_TESTS_BENCH_PASSES_H_
#define GRADCLIP_TESTS_BENCH_PASSES_H_

#include <atomic>
#include <cstddef>
#include <limits>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/measure.h"
#include "tests/bench/plain.h"

namespace gradclip::bench {

// Where results go, so that no pass is optimised away.
inline std::atomic<double>& SinkOfResults() {
  static std::atomic<double> sink;
  return sink;
}

// Each thread's part is a multiple of it, but for the last one's.
inline constexpr size_t kPartBytes = size_t{1} << 20;

// Seconds in which `threads` threads do `work`, each on its part of the memory.
template <typename Work>
absl::StatusOr<double> OnThreads(unsigned threads, std::span<std::byte> memory, const Work& work) {
  return TimeOf([&] {
    const size_t part = memory.size() / threads / kPartBytes * kPartBytes;
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < threads; ++i) {
      const size_t begin = i * part;
      others.emplace_back(work,
                          memory.subspan(begin, i + 1 == threads ? memory.size() - begin : part));
    }
    work(memory.first(threads == 1 ? memory.size() : part));
    return absl::OkStatus();
  });
}

// The pass that is the fastest here.
template <typename Pass, typename Run>
absl::StatusOr<Pass> Fastest(const std::vector<Pass>& passes, const Run& run) {
  Pass fastest = passes.front();
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 3; ++round) {
    for (const Pass pass : passes) {
      const absl::StatusOr<double> seconds = run(pass);
      if (!seconds.ok()) return seconds.status();
      if (*seconds >= least) continue;
      least = *seconds;
      fastest = pass;
    }
  }
  return fastest;
}

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_PASSES_H_
