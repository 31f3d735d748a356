// gradclip-gpu-bench: how fast the CUDA backend is on this machine's GPU.
#include <CLI/CLI.hpp>
#include <iostream>
#include <optional>
#include <string>

#include "tests/bench/gpu/gpu_bench.h"

namespace {

int Fail(const absl::Status& status) {
  std::cerr << "gradclip-gpu-bench: " << status.message() << std::endl;
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  gradclip::bench::Settings settings;
  std::optional<int> device;
  std::string json;
  CLI::App app(
      "Measures the CUDA backend against what the GPU's memory and the way there can do, in the "
      "same rounds.",
      "gradclip-gpu-bench");
  app.add_option("--device", device,
                 "The GPU's number, as CUDA counts them; the first that can "
                 "be used if not given");
  app.add_option("--rounds", settings.rounds, "Rounds to take medians of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", settings.quick,
               "2 rounds of small sizes: whether everything runs, not how fast");
  app.add_option("--json", json,
                 "Write the figures as JSON to FILE besides; - for standard output in place of the "
                 "table")
      ->option_text("FILE");
  app.footer(
      "Takes 1.5 GiB of the GPU's memory and 0.5 GiB of the host's, pinned. The GPU should be "
      "idle. "
      "The exit status is 0 whether goals are met or not, and 1 where there is no GPU.");
  CLI11_PARSE(app, argc, argv);

  if (settings.quick) settings.rounds = 2;
  gradclip::bench::Report report(json == "-" ? nullptr : &std::cout);
  if (absl::Status run = gradclip::bench::RunGpu(settings, device, report); !run.ok()) {
    return Fail(run);
  }
  if (!json.empty()) {
    if (absl::Status written = report.WriteJson(json); !written.ok()) return Fail(written);
  }
  return 0;
}
