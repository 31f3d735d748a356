// How near norm and scaling come to the speed of memory.
#include <algorithm>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/backend/backend.h"
#include "server/norm/gradient_norm.h"
#include "tests/bench/gradient.h"
#include "tests/bench/passes.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

// Work comes to the kernels in slices of a received message, and in segments of the arena.
constexpr size_t kSliceBytes = size_t{64} << 10;
constexpr size_t kSegmentBytes = kPartBytes;

// Passes are short, so there are several in a round.
constexpr int kPassesInRound = 3;

constexpr double kCoefficient = 0.999;
// The plain passes take all elements for floats. A factor of 1 costs what another does and leaves
// F16, BF16 and F64 what they are.
constexpr float kPlainFactor = 1;

class Kernels {
 public:
  Kernels(Bench& bench, const Backend& backend, std::span<std::byte> memory)
      : bench_(bench), backend_(backend), memory_(memory) {}

  absl::Status CompareNorm(DType dtype, unsigned threads, std::optional<Goal> goal) {
    const auto read = [&](ReadPass pass) {
      return OnThreads(threads, memory_, [pass](std::span<std::byte> part) {
        SinkOfResults() = static_cast<double>(pass(part));
      });
    };
    const absl::StatusOr<ReadPass> fastest = Fastest(ReadPasses(), read);
    if (!fastest.ok()) return fastest.status();
    const auto norm = [&] {
      return OnThreads(threads, memory_, [&](std::span<std::byte> part) {
        GradientNorm measured(backend_, 2, /*per_tensor=*/false);
        measured.BeginTensor(dtype, /*counted=*/true);
        for (size_t at = 0; at < part.size(); at += kSliceBytes) {
          measured.Add(part.data() + at, kSliceBytes / ElementSize(dtype));
        }
        measured.EndTensor();
        SinkOfResults() = measured.total().Norm();
      });
    };
    return Add("norm", "read pass", dtype, threads, goal, norm, [&] { return read(*fastest); });
  }

  absl::Status CompareScale(DType dtype, unsigned threads, std::optional<Goal> goal) {
    const auto plain = [&](ScalePass pass) {
      return OnThreads(threads, memory_,
                       [pass](std::span<std::byte> part) { pass(part, kPlainFactor); });
    };
    const absl::StatusOr<ScalePass> fastest = Fastest(ScalePasses(), plain);
    if (!fastest.ok()) return fastest.status();
    FillElements(dtype, memory_);
    const auto scale = [&] {
      return OnThreads(threads, memory_, [&](std::span<std::byte> part) {
        for (size_t at = 0; at < part.size(); at += kSegmentBytes) {
          backend_.Scale(dtype, part.data() + at, kSegmentBytes / ElementSize(dtype), kCoefficient);
        }
      });
    };
    return Add("scale", "plain scale pass", dtype, threads, goal, scale,
               [&] { return plain(*fastest); });
  }

 private:
  absl::Status Add(std::string_view what, std::string limit_is, DType dtype, unsigned threads,
                   std::optional<Goal> goal, Timed ours, Timed limit) {
    const absl::StatusOr<Comparison> comparison =
        Compare(kPassesInRound * bench_.settings.rounds, ours, limit);
    if (!comparison.ok()) return comparison.status();
    Row row = RateRow(
        absl::StrFormat("%s %s, %s", what, Name(dtype), threads == 1 ? "one core" : "all cores"),
        std::move(limit_is), memory_.size(), *comparison);
    row.goal = goal;
    bench_.report.Add(row);
    return absl::OkStatus();
  }

  Bench& bench_;
  const Backend& backend_;
  const std::span<std::byte> memory_;
};

}  // namespace

absl::Status RunKernels(Bench& bench) {
  const absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend("auto");
  if (!backend.ok()) return backend.status();
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  // More than caches hold; a part for each core.
  const Pages pages(bench.settings.quick ? cores * kSegmentBytes
                                         : std::max<uint64_t>(cores * 4, 256) * kSegmentBytes);
  bench.report.BeginSection("kernels", absl::StrFormat("GB/s of memory, %d MiB in huge pages",
                                                       pages.bytes().size() >> 20));
  Kernels kernels(bench, **backend, pages.bytes());
  for (const unsigned threads : cores == 1 ? std::vector{1u} : std::vector{cores, 1u}) {
    const bool all = threads == cores;
    const auto goal = [&](double value) {
      return all ? std::optional(AtLeast(value)) : std::nullopt;
    };
    for (const DType dtype :
         {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      const bool narrow = ElementSize(dtype) == 2;
      FillElements(dtype, pages.bytes());
      absl::Status compared = kernels.CompareNorm(dtype, threads, goal(narrow ? 0.75 : 0.90));
      if (!compared.ok()) return compared;
    }
    for (const DType dtype :
         {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      const bool narrow = ElementSize(dtype) == 2;
      absl::Status compared = kernels.CompareScale(dtype, threads, goal(narrow ? 0.75 : 0.95));
      if (!compared.ok()) return compared;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
