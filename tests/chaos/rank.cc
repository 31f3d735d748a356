// One rank of a chaos run, as a trainer's process would be: it clips its gradient of each step with
// the ranks of a job, asks again where it does not know what became of an attempt, goes on to the
// next attempt where one was aborted, and writes all down (history.h). Killed and started anew it
// goes on from there.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gradclip/client.h"
#include "tests/chaos/checker.h"
#include "tests/chaos/history.h"

namespace gradclip {
namespace {

struct Options {
  std::string servers;
  std::string history;
  uint32_t rank = 0;
  uint32_t world_size = 1;
  uint64_t steps = 0;
  uint64_t seed = 0;
};

constexpr absl::Duration kStepTimeout = absl::Seconds(2);
constexpr absl::Duration kLongTimeout = absl::Seconds(30);  // of one's own

class Rank {
 public:
  explicit Rank(const Options& options)
      : options_(options),
        client_(options.servers),
        past_(ReadHistory(options.history)),
        history_(options.history),
        random_(options.seed ^ (past_.size() << 32) ^ options.rank) {}

  // False where it was told what no rank may be told.
  bool Run() {
    uint64_t step = 0;
    uint32_t attempt = 0;
    for (const Call& call : past_) {
      if (call.step > step) attempt = 0;
      step = std::max(step, call.step);
      if (call.step == step && call.kind != Call::Kind::kUsurping) attempt = call.attempt;
    }
    for (; step < options_.steps; ++step, attempt = 0) {
      absl::SleepFor(UpTo(absl::Milliseconds(60)));  // computes the gradient
      if (!Finish(step, attempt)) return false;
      committed_[step] = attempt;
      LookBack(step, attempt);
    }
    return true;
  }

 private:
  // True once in so many times.
  bool Once(int times) { return random_() % times == 0; }
  absl::Duration UpTo(absl::Duration most) {
    return most * std::uniform_real_distribution<double>(0, 1)(random_);
  }

  // Until the step is committed; `attempt` is then the one that committed it.
  bool Finish(uint64_t step, uint32_t& attempt) {
    while (true) {
      const Call::Kind kind = Once(40) ? Call::Kind::kMistaken : Call::Kind::kOwn;
      const bool impatient = Once(60);
      const Call call =
          Ask(step, attempt, kind, impatient ? UpTo(absl::Milliseconds(200)) : kLongTimeout);
      switch (WhatIsTold(call)) {
        case Told::kCommitted:
          return true;
        case Told::kUnknown:
        case Told::kOtherTerms:
          // Asks again, as a rule. It may also give the attempt up for all.
          if (Once(30)) ++attempt;
          absl::SleepFor(UpTo(absl::Milliseconds(20)));
          break;
        case Told::kAborted:
          if (Once(2)) break;  // is it final?
          absl::SleepFor(UpTo(absl::Milliseconds(20)));
          ++attempt;
          break;
        case Told::kOver:
          attempt = CommittedBy(call).value_or(attempt + 1);
          break;
        case Told::kTaken:
        case Told::kUnexpected:
          std::fprintf(stderr, "%s\n", Describe(call).c_str());
          return false;
      }
    }
  }

  // Asks what it need not: a step that has ended stays as it is.
  void LookBack(uint64_t step, uint32_t attempt) {
    if (Once(8)) Ask(step, attempt, Call::Kind::kOwn, kLongTimeout);
    if (Once(8)) Ask(step, attempt, Call::Kind::kUsurping, kLongTimeout);
    // All ranks try the step once more: what one can't have committed, all together can't either.
    if (step % 4 == 3) {
      uint32_t another = attempt + 1;
      Finish(step, another);
    }
    if (Once(8)) {
      const auto& [earlier, committed_by] =
          *std::next(committed_.begin(), static_cast<int64_t>(random_() % committed_.size()));
      Ask(earlier, committed_by, Call::Kind::kOwn, kLongTimeout);
    }
  }

  Call Ask(uint64_t step, uint32_t attempt, Call::Kind kind, absl::Duration timeout) {
    // Of each attempt another, so that answers of two attempts can be told apart.
    std::mt19937_64 values(((step << 24) + (uint64_t{attempt} << 12) + options_.rank) * 2 +
                           (kind == Call::Kind::kUsurping ? 1 : 0));
    std::vector<float> gradient(3);
    Call call{.rank = options_.rank, .step = step, .attempt = attempt, .kind = kind};
    for (float& element : gradient) {
      const uint64_t value = 1 + values() % 1000;
      element = static_cast<float>(value);
      call.sum_of_squares += value * value;
    }
    ClipOptions options;
    options.max_norm = kind == Call::Kind::kMistaken ? kMaxNorm / 2 : kMaxNorm;
    CallOptions of_rank;
    of_rank.timeout = timeout;
    of_rank.group.emplace();
    of_rank.group->job = "chaos";
    of_rank.group->step = step;
    of_rank.group->attempt = attempt;
    of_rank.group->rank = options_.rank;
    of_rank.group->world_size = options_.world_size;
    of_rank.group->timeout = kStepTimeout;
    call.begun = absl::Now();
    history_.Begin(call);
    const auto answer =
        client_.Clip({{{"w", DType::kFloat32, {3}, gradient.data()}}}, options, of_rank);
    call.end = Call::End{.at = absl::Now(), .status = answer.status()};
    if (answer.ok()) {
      call.end->total_norm = answer->norm.total_norm;
      call.end->coefficient = answer->coefficient;
    }
    history_.End(*call.end);
    return call;
  }

  const Options options_;
  Client client_;
  const std::vector<Call> past_;
  HistoryWriter history_;
  std::mt19937_64 random_;
  std::map<uint64_t, uint32_t> committed_;  // step -> the attempt that committed it
};

}  // namespace
}  // namespace gradclip

int main(int argc, char** argv) {
  gradclip::Options options;
  CLI::App app("One rank of a chaos run");
  app.add_option("--servers", options.servers)->required();
  app.add_option("--history", options.history)->required();
  app.add_option("--rank", options.rank)->required();
  app.add_option("--world-size", options.world_size)->required();
  app.add_option("--steps", options.steps)->required();
  app.add_option("--seed", options.seed)->required();
  CLI11_PARSE(app, argc, argv);
  return gradclip::Rank(options).Run() ? 0 : 1;
}
