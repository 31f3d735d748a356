// gradclip-train: trains a small network in one process and over several, and compares every step.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "examples/train/clipping.h"
#include "examples/train/collectives.h"
#include "examples/train/processes.h"
#include "examples/train/record.h"
#include "examples/train/shared_array.h"
#include "examples/train/trainer.h"

namespace {

using train::Mode;
using train::Record;

struct Options {
  std::string server = "127.0.0.1:50051";
  std::string job = "train";
  uint64_t generation = absl::ToUnixMicros(absl::Now());  // raised by every start
  size_t processes = 4;
  size_t steps = 100;
  double max_norm = 1.5;
};

// One mode's processes, and what each has recorded of every step.
class Run {
 public:
  Run(const Options& options, Mode mode)
      : options_(options),
        mode_(mode),
        processes_(mode == Mode::kSingle ? 1 : options.processes),
        records_(processes_ * options.steps) {}

  absl::Status Train() const {
    train::Collectives collectives(processes_, train::Elements(train::Layout(train::kUnits)));
    return train::RunProcesses(processes_, [&](size_t rank) {
      train::Clipping clipping(options_.server, options_.max_norm, ParticipantOf(rank));
      train::Trainer trainer(mode_, options_.processes, rank, collectives);
      return trainer.Train([&](std::span<gradclip::Tensor> gradient,
                               uint64_t step) { return clipping.Clip(gradient, step); },
                           RecordsOf(rank));
    });
  }

  void Print() const {
    std::printf("%s, %zu process%s\n", Name(mode_), processes_, processes_ == 1 ? "" : "es");
    std::printf("%6s  %-10s  %-20s  %s\n", "step", "loss", "total norm", "coefficient");
    const size_t last = options_.steps - 1;
    size_t clipped = 0;
    for (size_t step = 0; step <= last; ++step) {
      const Record& record = records_[step];
      clipped += record.coefficient < 1 ? 1 : 0;
      if (step % (last / 10 + 1) != 0 && step != last) continue;
      std::printf("%6zu  %-10.6f  %-20.17g  %.17g\n", step, record.loss, record.total_norm,
                  record.coefficient);
    }
    std::printf("clipped in %zu of %zu steps\n\n", clipped, options_.steps);
    std::fflush(stdout);
  }

  std::span<Record> RecordsOf(size_t rank) const {
    return records_.Part(rank * options_.steps, options_.steps);
  }

  // Compares all processes with the one of `single`. Says what differs.
  bool IsSameAs(const Run& single) const {
    for (size_t rank = 0; rank < processes_; ++rank) {
      const auto difference = train::FirstDifference(single.RecordsOf(0), RecordsOf(rank));
      if (!difference.has_value()) continue;
      std::printf("DIFFERENT BITS: %s, rank %zu, %s\n", Name(mode_), rank, difference->c_str());
      return false;
    }
    return true;
  }

 private:
  std::optional<train::Participant> ParticipantOf(size_t rank) const {
    if (mode_ == Mode::kSingle) return std::nullopt;
    return train::Participant{absl::StrCat(options_.job, "/", Name(mode_)), options_.generation,
                              static_cast<uint32_t>(rank), static_cast<uint32_t>(processes_)};
  }

  const Options& options_;
  const Mode mode_;
  const size_t processes_;
  const train::SharedArray<Record> records_;
};

int TrainAndCompare(const Options& options) {
  const Run runs[] = {
      {options, Mode::kSingle}, {options, Mode::kDataParallel}, {options, Mode::kSharded}};
  for (const Run& run : runs) {
    if (const absl::Status trained = run.Train(); !trained.ok()) {
      std::fprintf(stderr, "gradclip-train: %s\n", std::string(trained.message()).c_str());
      return 1;
    }
    run.Print();
  }
  for (const Run& run : runs) {
    if (!run.IsSameAs(runs[0])) return 1;
  }
  std::printf(
      "the same bits at every one of %zu steps: loss, total norm, coefficient and parameters\n",
      options.steps);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // gRPC's own log lines would stand between those of the table.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  Options options;
  CLI::App app("Trains a small network in one process and over several, and compares every step.",
               "gradclip-train");
  app.add_option("--server", options.server, "Address of the server")->capture_default_str();
  app.add_option("--processes", options.processes, "How many train together")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--steps", options.steps, "How many to train")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--max-norm", options.max_norm, "Limit for the gradient's norm")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--job", options.job, "Name of the job; of two at once each needs its own")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return TrainAndCompare(options);
}
