// Both RPCs with one caller, by message size and transport.
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/bench/caller.h"
#include "tests/bench/clipping_client.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;

struct MessageSize {
  std::string name;
  uint64_t bytes;
  uint64_t gradient_bytes;
  bool has_goals;
};

// One size of message over one transport.
class Rpcs {
 public:
  Rpcs(Bench& bench, const Transport& transport, const MessageSize& size)
      : bench_(bench),
        transport_(transport),
        size_(size),
        gradient_(LargeGradient(size.gradient_bytes)),
        ours_(transport.ours),
        raw_(transport.raw) {}

  absl::Status Run() {
    const auto clip = [&](v1::ReplyMode reply, double max_norm) {
      return gradient_.Messages(gradient_.ClipStart(reply, max_norm), size_.bytes);
    };
    const struct {
      std::string what;
      const char* method;
      std::vector<grpc::ByteBuffer> messages;
      uint64_t reply_bytes;
      double goal;
    } cases[] = {
        {"ComputeNorm", kComputeNorm, gradient_.Messages(gradient_.NormStart(), size_.bytes), 1,
         0.95},
        {"clip, COEFFICIENT", kClipGradNorm, clip(v1::REPLY_COEFFICIENT, kClips), 1, 0.95},
        {"clip, IF_CHANGED, unchanged", kClipGradNorm,
         clip(v1::REPLY_GRADIENT_IF_CHANGED, kNeverClips), 1, 0},
        {"clip, GRADIENT, clipped", kClipGradNorm, clip(v1::REPLY_GRADIENT, kClips),
         gradient_.bytes(), 0.90},
    };
    for (const auto& one : cases) {
      // The raw ClipGradNorm sends everything back, the raw ComputeNorm nothing.
      const bool echo = one.reply_bytes > 1;
      absl::Status compared = Add(
          one.what, echo ? "keep and echo" : "raw sink", one.goal,
          [&] {
            return TimeOf([&] { return ours_.Call(one.method, one.messages, one.reply_bytes); });
          },
          [&] {
            return TimeOf([&] {
              return raw_.Call(echo ? kClipGradNorm : kComputeNorm, one.messages, one.reply_bytes);
            });
          });
      if (!compared.ok()) return compared;
    }
    return CompareClient(cases[0].messages);
  }

 private:
  // The client library beside the raw caller: what a program gets that clips its memory in place.
  absl::Status CompareClient(const std::vector<grpc::ByteBuffer>& messages) {
    ClippingClient client(transport_.ours, gradient_.tensors(), {.message_bytes = size_.bytes});
    return Add(
        "gradclip::Client, clip and scale", "raw sink", 0,
        [&] { return TimeOf([&] { return client.Clip(); }); },
        [&] { return TimeOf([&] { return raw_.Call(kComputeNorm, messages, 1); }); });
  }

  absl::Status Add(const std::string& what, std::string limit_is, double goal, Timed ours,
                   Timed limit) {
    const absl::StatusOr<Comparison> comparison = Compare(bench_.settings.rounds, ours, limit);
    if (!comparison.ok()) return comparison.status();
    Row row = RateRow(absl::StrFormat("%s, %s, %s", transport_.name, size_.name, what),
                      std::move(limit_is), gradient_.bytes(), *comparison);
    if (goal > 0 && size_.has_goals) row.goal = AtLeast(goal);
    bench_.report.Add(row);
    return absl::OkStatus();
  }

  Bench& bench_;
  const Transport& transport_;
  const MessageSize& size_;
  const Gradient gradient_;
  Caller ours_;
  Caller raw_;
};

}  // namespace

absl::Status RunRpcs(Bench& bench) {
  const uint64_t scale = bench.settings.quick ? 64 : 1;
  const MessageSize sizes[] = {{"64 KiB", 64 * kKiB, 256 * kMiB / scale, false},
                               {"1 MiB", kMiB, 512 * kMiB / scale, true},
                               {"4 MiB", 4 * kMiB, 256 * kMiB / scale, false}};
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder);
  if (!servers.ok()) return servers.status();
  bench.report.BeginSection("rpcs",
                            "GB/s of gradient through one call, against raw gRPC moving the same "
                            "messages; servers are processes of their own");
  for (const Transport& transport : {Tcp(*servers), UnixSocket(*servers)}) {
    for (const MessageSize& size : sizes) {
      if (absl::Status run = Rpcs(bench, transport, size).Run(); !run.ok()) return run;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
