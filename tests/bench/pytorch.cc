// PyTorch's own clip_grad_norm_ beside a clip through the client library.
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/bench/clipping_client.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

// clip_grad_norm.py with one gradient.
class PyTorch {
 public:
  static absl::StatusOr<PyTorch> Start(const ScratchFolder& folder, const Gradient& gradient) {
    std::vector<std::string> arguments = {GRADCLIP_BENCH_PYTORCH};
    for (const Tensor& tensor : gradient.tensors()) {
      arguments.push_back(absl::StrJoin(tensor.shape, "x"));
    }
    absl::StatusOr<std::unique_ptr<Child>> process =
        Child::Start("python3", arguments, folder.path() + "/python.log");
    if (!process.ok()) return process.status();
    absl::StatusOr<std::string> version = (*process)->ReadLine();
    if (!version.ok()) return version.status();
    return PyTorch(*std::move(process), *std::move(version));
  }

  const std::string& version() const { return version_; }

  // Seconds of one clip.
  absl::StatusOr<double> Clip() {
    if (absl::Status asked = process_->WriteLine("clip"); !asked.ok()) return asked;
    const absl::StatusOr<std::string> answer = process_->ReadLine();
    if (!answer.ok()) return answer.status();
    double seconds = 0;
    if (!absl::SimpleAtod(*answer, &seconds)) return absl::InternalError(*answer);
    return seconds;
  }

 private:
  PyTorch(std::unique_ptr<Child> process, std::string version)
      : process_(std::move(process)), version_(std::move(version)) {}

  std::unique_ptr<Child> process_;
  std::string version_;
};

Gradient ManySmallTensors() {
  return Gradient(std::vector<std::vector<int64_t>>(4000, std::vector<int64_t>{64}));
}

}  // namespace

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
    absl::StatusOr<PyTorch> pytorch = PyTorch::Start(bench.folder, one.gradient);
    if (!pytorch.ok()) {
      bench.report.Note(absl::StrCat("not measured: ", pytorch.status().message()));
      return absl::OkStatus();
    }
    ClippingClient client(servers->ours.unix_socket, one.gradient.tensors());
    const absl::StatusOr<Comparison> comparison = Compare(
        one.calls_in_round * bench.settings.rounds,
        [&] { return TimeOf([&] { return client.Clip(); }); }, [&] { return pytorch->Clip(); });
    if (!comparison.ok()) return comparison.status();
    bench.report.Add(
        LatencyRow(one.what, absl::StrCat("PyTorch ", pytorch->version()), 50, *comparison));
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
