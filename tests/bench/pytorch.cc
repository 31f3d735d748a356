// PyTorch's own clip_grad_norm_ beside a clip through the client library.
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/bench/clipping_client.h"
#include "tests/bench/gradient.h"
#include "tests/bench/pytorch_process.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
absl::Status RunPyTorch(Bench& bench) {
  const absl::StatusOr<ServerPair> servers = StartBoth(bench.folder);
  if (!servers.ok()) return servers.status();
  bench.report.BeginSection(
      "pytorch", "gradclip::Client over a unix socket, against torch.nn.utils.clip_grad_norm_");
  const struct {
    std::string what;
    Gradient gradient;
    int calls_in_round;
  } cases[] = {
      {"one element", OneElement(), 20},
      {"41 tensors, 1.4 MB", TransformerGradient(), 20},
      {"4,000 tensors of 64 elements", ManySmallTensors(), 3},
      {"256 MiB", LargeGradient(uint64_t{bench.settings.quick ? 4u : 256u} << 20), 1},
  };
  for (const auto& one : cases) {
    absl::StatusOr<PyTorch> pytorch = PyTorch::Start(bench.folder, one.gradient.tensors());
    if (!pytorch.ok()) {
      bench.report.Note(absl::StrCat("not measured: ", pytorch.status().message()));
      return absl::OkStatus();
    }
    ClippingClient client(servers->ours.unix_socket, one.gradient.tensors());
    const absl::StatusOr<Comparison> comparison = Compare(
        one.calls_in_round * bench.settings.rounds,
        [&] { return TimeOf([&] { return client.Clip(); }); },
        [&] { return pytorch->Clip(kAlwaysClips); });
    if (!comparison.ok()) return comparison.status();
    bench.report.Add(
        LatencyRow(one.what, absl::StrCat("PyTorch ", pytorch->version()), 50, *comparison));
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
