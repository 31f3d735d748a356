// gradclip-bench: how fast GradClip is, each figure beside a limit measured in the same rounds.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "server/backend/backend.h"
#include "tests/bench/raw_server.h"
#include "tests/bench/sections.h"

namespace {

using gradclip::bench::Bench;
using gradclip::bench::Report;
using gradclip::bench::ScratchFolder;
using gradclip::bench::Settings;

struct Section {
  std::string name;
  absl::Status (*run)(Bench& bench);
};

const Section kSections[] = {
    {"kernels", gradclip::bench::RunKernels}, {"rpcs", gradclip::bench::RunRpcs},
    {"latency", gradclip::bench::RunLatency}, {"parallel", gradclip::bench::RunParallel},
    {"memory", gradclip::bench::RunMemory},   {"pytorch", gradclip::bench::RunPyTorch},
    {"shared", gradclip::bench::RunShared},   {"groups", gradclip::bench::RunGroups},
    {"ranks", gradclip::bench::RunRanks},
};

int Fail(const absl::Status& status) {
  std::cerr << "gradclip-bench: " << status.message() << std::endl;
  return 1;
}

absl::Status RunSections(const Settings& settings, const std::vector<std::string>& only,
                         Report& report) {
  const absl::StatusOr<std::unique_ptr<gradclip::Backend>> backend = gradclip::MakeBackend("auto");
  if (!backend.ok()) return backend.status();
  const absl::StatusOr<std::unique_ptr<ScratchFolder>> folder = ScratchFolder::Make();
  if (!folder.ok()) return folder.status();
  report.BeginMachine((*backend)->name(), settings.rounds, settings.quick);
  Bench bench = {settings, report, **folder};
  for (const Section& section : kSections) {
    if (!only.empty() && std::find(only.begin(), only.end(), section.name) == only.end()) continue;
    if (absl::Status run = section.run(bench); !run.ok()) return run;
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  signal(SIGPIPE, SIG_IGN);  // a child that has ended is told by its pipe's errors
  Settings settings;
  std::string json;
  std::vector<std::string> only;
  std::vector<std::string> raw_addresses;
  std::vector<std::string> names;
  for (const Section& section : kSections) names.push_back(section.name);

  CLI::App app("Measures GradClip against what memory and gRPC can do, in the same rounds.",
               "gradclip-bench");
  app.add_option("--only", only, "Sections to run")->check(CLI::IsMember(names));
  bool shared = false;
  app.add_flag("--shared", shared,
               "The same as --only shared: shared memory, with PyTorch beside it");
  app.add_option("--rounds", settings.rounds, "Rounds to take medians of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", settings.quick,
               "2 rounds of small sizes: whether everything runs, not how fast");
  app.add_option("--json", json,
                 "Write the figures as JSON to FILE besides; - for standard output in place of the "
                 "table")
      ->option_text("FILE");
  app.add_option("--serve-raw", raw_addresses,
                 "Be the raw gRPC server that GradClip is compared with, at these addresses")
      ->option_text("ADDRESS");
  app.footer(
      "Takes some minutes and 4 GiB of memory. The machine should be idle. The exit status "
      "is 0 whether goals are met or not.");
  CLI11_PARSE(app, argc, argv);

  if (!raw_addresses.empty()) return Fail(gradclip::bench::ServeRaw(raw_addresses));
  if (settings.quick) settings.rounds = 2;
  if (shared) only.emplace_back("shared");
  Report report(json == "-" ? nullptr : &std::cout);
  if (absl::Status run = RunSections(settings, only, report); !run.ok()) return Fail(run);
  if (!json.empty()) {
    if (absl::Status written = report.WriteJson(json); !written.ok()) return Fail(written);
  }
  return 0;
}
