// What the server holds at most while it keeps a gradient to send it back.
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/bench/caller.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

constexpr double kMiB = 1 << 20;

// The most that a fresh server ever held, in MiB, after `calls` calls.
absl::StatusOr<double> PeakOf(const RunningServer& server, int calls,
                              const std::vector<grpc::ByteBuffer>& messages, uint64_t reply_bytes) {
  Caller caller(server.tcp);
  for (int i = 0; i < calls; ++i) {
    absl::Status called = caller.Call(kClipGradNorm, messages, reply_bytes);
    if (!called.ok()) return called;
  }
  const absl::StatusOr<uint64_t> peak = server.process->MemoryBytes("VmHWM");
  if (!peak.ok()) return peak.status();
  return static_cast<double>(*peak) / kMiB;
}

}  // namespace

absl::Status RunMemory(Bench& bench) {
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder);
  if (!servers.ok()) return servers.status();

  const uint64_t bytes = uint64_t{bench.settings.quick ? 16u : 512u} << 20;
  const double kept = static_cast<double>(bytes) / kMiB;
  const double allowed = 1.1 * kept + 64;
  bench.report.BeginSection(
      "memory", absl::StrFormat("most memory of a fresh server for clips of %.0f MiB with "
                                "REPLY_GRADIENT, all that the process holds",
                                kept));
  const Gradient gradient = LargeGradient(bytes);
  const auto messages =
      gradient.Messages(gradient.ClipStart(v1::REPLY_GRADIENT, kClips), uint64_t{1} << 20);
  const absl::StatusOr<double> raw = PeakOf(servers->raw, 1, messages, bytes);
  if (!raw.ok()) return raw.status();
  for (const int calls : {1, 4}) {
    const absl::StatusOr<double> peak = PeakOf(servers->ours, calls, messages, gradient.bytes());
    if (!peak.ok()) return peak.status();
    const std::string what = calls == 1 ? "first clip" : absl::StrFormat("%d more clips", calls);
    Row row = {.what = what,
               .limit_is = "1.1 x gradient + 64 MiB",
               .unit = "MiB",
               .ours = *peak,
               .limit = allowed,
               .ratio = *peak / allowed,
               .goal = AtMost(1)};
    bench.report.Add(row);
    row.limit_is = "gradient";
    row.limit = kept;
    row.ratio = *peak / kept;
    row.goal.reset();
    bench.report.Add(row);
    if (calls > 1) continue;
    row.limit_is = "keep and echo";
    row.limit = *raw;
    row.ratio = *peak / *raw;
    bench.report.Add(row);
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
