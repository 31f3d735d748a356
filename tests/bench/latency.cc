// How long small calls take.
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/caller.h"
#include "tests/bench/clipping_client.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

constexpr int kCallsInRound = 200;

class Latency {
 public:
  Latency(Bench& bench, const Transport& transport)
      : bench_(bench), transport_(transport), ours_(transport.ours), raw_(transport.raw) {
    const grpc::Slice nothing;
    empty_.emplace_back(&nothing, 1);
  }

  absl::Status Run(const std::string& what, const Gradient& gradient, std::optional<Goal> goal) {
    constexpr uint64_t kMessageBytes = uint64_t{1} << 20;
    const struct {
      std::string name;
      const char* method;
      std::vector<grpc::ByteBuffer> messages;
      uint64_t reply_bytes;
      std::optional<Goal> goal;
    } cases[] = {
        {"ComputeNorm",
         kComputeNorm,
         gradient.Messages(gradient.NormStart(), kMessageBytes),
         1,
         {}},
        {"clip, COEFFICIENT", kClipGradNorm,
         gradient.Messages(gradient.ClipStart(v1::REPLY_COEFFICIENT, kClips), kMessageBytes), 1,
         goal},
        {"clip, GRADIENT", kClipGradNorm,
         gradient.Messages(gradient.ClipStart(v1::REPLY_GRADIENT, kClips), kMessageBytes),
         gradient.bytes(), goal},
    };
    for (const auto& one : cases) {
      absl::Status compared = Add(absl::StrCat(what, ", ", one.name), one.goal, [&] {
        return TimeOf([&] { return ours_.Call(one.method, one.messages, one.reply_bytes); });
      });
      if (!compared.ok()) return compared;
    }
    // What of it gRPC itself takes for the same messages, answered with a small one.
    const auto clip =
        gradient.Messages(gradient.ClipStart(v1::REPLY_COEFFICIENT, kClips), kMessageBytes);
    absl::Status sunk =
        Add(absl::StrCat(what, ", the same messages to a raw sink"), std::nullopt,
            [&] { return TimeOf([&] { return raw_.Call(kComputeNorm, clip, 1); }); });
    if (!sunk.ok()) return sunk;
    ClippingClient client(transport_.ours, gradient.tensors());
    return Add(absl::StrCat(what, ", gradclip::Client"), goal,
               [&] { return TimeOf([&] { return client.Clip(); }); });
  }

 private:
  absl::Status Add(const std::string& what, std::optional<Goal> goal, Timed ours) {
    const int calls = bench_.settings.quick ? 10 : kCallsInRound * bench_.settings.rounds;
    // Answered by the raw ClipGradNorm with the same empty message.
    const absl::StatusOr<Comparison> comparison = Compare(
        calls, ours, [&] { return TimeOf([&] { return raw_.Call(kClipGradNorm, empty_, 0); }); });
    if (!comparison.ok()) return comparison.status();
    for (const Row& row : LatencyRows(absl::StrCat(transport_.name, ", ", what),
                                      "empty stream call", *comparison, goal)) {
      bench_.report.Add(row);
    }
    return absl::OkStatus();
  }

  Bench& bench_;
  const Transport& transport_;
  Caller ours_;
  Caller raw_;
  std::vector<grpc::ByteBuffer> empty_;  // one message of no bytes
};

}  // namespace

absl::Status RunLatency(Bench& bench) {
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder);
  if (!servers.ok()) return servers.status();
  bench.report.BeginSection(
      "latency", "time of one call, against a raw stream call with one empty message each way");
  const Gradient one_element = OneElement();
  const Gradient transformer = TransformerGradient();
  for (const Transport& transport : {Tcp(*servers), UnixSocket(*servers)}) {
    Latency latency(bench, transport);
    if (absl::Status run = latency.Run("1 element", one_element, AtMost(1.3)); !run.ok())
      return run;
    if (absl::Status run = latency.Run("41 tensors, 1.4 MB", transformer, std::nullopt);
        !run.ok()) {
      return run;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
