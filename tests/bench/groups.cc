// What it costs that ranks wait for each other: a step of two ranks against a single caller's call.
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/caller.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"

namespace gradclip::bench {
namespace {

constexpr int kStepsInRound = 100;
constexpr uint32_t kRanks = 2;
constexpr uint64_t kMessageBytes = uint64_t{1} << 20;

class Groups {
 public:
  Groups(Bench& bench, const std::string& transport, const std::string& address)
      : bench_(bench), transport_(transport) {
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      callers_.push_back(std::make_unique<Caller>(address));
    }
  }

  absl::Status Run(const std::string& what, const Gradient& gradient, std::optional<Goal> goal) {
    Comparison comparison;
    const int steps = bench_.settings.quick ? 5 : kStepsInRound;
    for (int round = -1; round < bench_.settings.rounds; ++round) {
      Comparison discarded;
      Comparison& into = round < 0 ? discarded : comparison;
      if (absl::Status ran = RunSteps(gradient, steps, into.ours); !ran.ok()) return ran;
      if (absl::Status ran = RunAlone(gradient, steps, into.limit); !ran.ok()) return ran;
    }
    for (const Row& row :
         LatencyRows(absl::StrCat(transport_, ", ", what), "a single caller", comparison, goal)) {
      bench_.report.Add(row);
    }
    return absl::OkStatus();
  }

 private:
  // Every rank's seconds of every step.
  absl::Status RunSteps(const Gradient& gradient, int steps, std::vector<double>& seconds) {
    std::vector<std::vector<double>> of_rank(kRanks);
    std::vector<absl::Status> statuses(kRanks);
    {
      std::vector<std::jthread> threads;
      for (uint32_t rank = 0; rank < kRanks; ++rank) {
        threads.emplace_back([&, rank] {
          for (int i = 0; i < steps && statuses[rank].ok(); ++i) {
            v1::ClipGradNormRequest start = gradient.ClipStart(v1::REPLY_COEFFICIENT, kClips);
            v1::Group& group = *start.mutable_start()->mutable_group();
            group.set_job("bench");
            group.set_step(step_ + i);
            group.set_rank(rank);
            group.set_world_size(kRanks);
            statuses[rank] =
                Add(*callers_[rank], gradient.Messages(start, kMessageBytes), of_rank[rank]);
          }
        });
      }
    }
    step_ += steps;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      if (!statuses[rank].ok()) return statuses[rank];
      seconds.insert(seconds.end(), of_rank[rank].begin(), of_rank[rank].end());
    }
    return absl::OkStatus();
  }

  absl::Status RunAlone(const Gradient& gradient, int calls, std::vector<double>& seconds) {
    const auto messages =
        gradient.Messages(gradient.ClipStart(v1::REPLY_COEFFICIENT, kClips), kMessageBytes);
    for (int i = 0; i < calls; ++i) {
      if (absl::Status added = Add(*callers_[0], messages, seconds); !added.ok()) return added;
    }
    return absl::OkStatus();
  }

  static absl::Status Add(Caller& caller, const std::vector<grpc::ByteBuffer>& messages,
                          std::vector<double>& seconds) {
    const absl::StatusOr<double> time =
        TimeOf([&] { return caller.Call(kClipGradNorm, messages, 1); });
    if (!time.ok()) return time.status();
    seconds.push_back(*time);
    return absl::OkStatus();
  }

  Bench& bench_;
  const std::string transport_;
  std::vector<std::unique_ptr<Caller>> callers_;
  uint64_t step_ = 0;
};

}  // namespace

absl::Status RunGroups(Bench& bench) {
  const absl::StatusOr<RunningServer> server = StartOurs(bench.folder);
  if (!server.ok()) return server.status();
  bench.report.BeginSection(
      "groups", "time of a rank's call in a group of two, against a call without a group");
  const Gradient one_element = OneElement();
  const Gradient transformer = TransformerGradient();
  for (const auto& [name, address] :
       {std::pair("TCP", server->tcp), std::pair("unix", server->unix_socket)}) {
    Groups groups(bench, name, address);
    if (absl::Status run = groups.Run("1 element", one_element, AtMost(2)); !run.ok()) return run;
    if (absl::Status run = groups.Run("41 tensors, 1.4 MB", transformer, AtMost(2)); !run.ok()) {
      return run;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
