// What the server moves in all when several call at once, each over a connection of its own.
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/bench/caller.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

using Callers = std::vector<std::unique_ptr<Caller>>;

Callers Connect(int count, const std::string& address) {
  Callers callers;
  for (int i = 0; i < count; ++i) callers.push_back(std::make_unique<Caller>(address));
  return callers;
}

// All callers make the same call at once.
absl::Status CallAll(const Callers& callers, const char* method,
                     const std::vector<grpc::ByteBuffer>& messages, uint64_t reply_bytes) {
  std::vector<absl::Status> statuses(callers.size());
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < callers.size(); ++i) {
      threads.emplace_back(
          [&, i] { statuses[i] = callers[i]->Call(method, messages, reply_bytes); });
    }
  }
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunParallel(Bench& bench) {
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder);
  if (!servers.ok()) return servers.status();
  bench.report.BeginSection("parallel", "GB/s of all callers together, TCP, 1 MiB messages");
  constexpr uint64_t kMessageBytes = uint64_t{1} << 20;
  const uint64_t all_bytes = uint64_t{bench.settings.quick ? 8u : 256u} << 20;
  const Transport tcp = Tcp(*servers);
  for (const int count : {1, 2, 4, 8}) {
    const Callers ours = Connect(count, tcp.ours);
    const Callers raw = Connect(count, tcp.raw);
    const Gradient gradient = LargeGradient(all_bytes / count);
    for (const bool echo : {false, true}) {
      const auto messages = gradient.Messages(
          gradient.ClipStart(echo ? v1::REPLY_GRADIENT : v1::REPLY_COEFFICIENT, kClips),
          kMessageBytes);
      const uint64_t reply_bytes = echo ? gradient.bytes() : 1;
      const absl::StatusOr<Comparison> comparison = Compare(
          bench.settings.rounds,
          [&] {
            return TimeOf([&] { return CallAll(ours, kClipGradNorm, messages, reply_bytes); });
          },
          [&] {
            return TimeOf([&] {
              return CallAll(raw, echo ? kClipGradNorm : kComputeNorm, messages, reply_bytes);
            });
          });
      if (!comparison.ok()) return comparison.status();
      bench.report.Add(
          RateRow(absl::StrFormat("%d caller%s, clip, %s", count, count == 1 ? "" : "s",
                                  echo ? "GRADIENT, clipped" : "COEFFICIENT"),
                  echo ? "keep and echo" : "raw sink", all_bytes, *comparison));
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
