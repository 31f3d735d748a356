// How many ranks can meet, and how fast: tiny shards, the store in memory and in Redis.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "tests/bench/measure.h"
#include "tests/bench/rank_calls.h"
#include "tests/bench/sections.h"
#include "tests/server/group/redis/redis_server.h"

namespace gradclip::bench {
namespace {

// All that counts calls and connections, out of the way of thousands of ranks from one host.
const std::vector<std::string> kManyRanks = {"--max-calls=20000",
                                             "--max-calls-per-caller=20000",
                                             "--max-streams-per-connection=10000",
                                             "--max-connections=10000",
                                             "--max-connections-per-peer=10000",
                                             "--log-level=warning"};

struct Store {
  std::string name;
  int servers;
  const RedisServer* redis;  // null: in the server's memory
};

using Servers = std::vector<RunningServer>;

// What the processes have taken and done so far; with differences and sums.
struct Work {
  double server_seconds = 0;  // of the processors, all servers together
  double redis_seconds = 0;
  double redis_commands = 0;
  double redis_bytes = 0;    // to it and from it
  double redis_memory = 0;   // bytes in use
  double server_memory = 0;  // the most bytes that servers ever held
};

absl::StatusOr<Work> WorkOf(const Servers& servers, const Store& store) {
  Work work;
  for (const RunningServer& server : servers) {
    const absl::StatusOr<double> seconds = server.process->CpuSeconds();
    if (!seconds.ok()) return seconds.status();
    work.server_seconds += *seconds;
    const absl::StatusOr<uint64_t> memory = server.process->MemoryBytes("VmHWM");
    if (!memory.ok()) return memory.status();
    work.server_memory += static_cast<double>(*memory);
  }
  if (store.redis == nullptr) return work;
  const std::map<absl::string_view, double*> fields = {
      {"used_cpu_user", &work.redis_seconds},
      {"used_cpu_sys", &work.redis_seconds},
      {"total_commands_processed", &work.redis_commands},
      {"total_net_input_bytes", &work.redis_bytes},
      {"total_net_output_bytes", &work.redis_bytes},
      {"used_memory", &work.redis_memory}};
  const std::string info = store.redis->Ask({"INFO"});
  for (const absl::string_view line : absl::StrSplit(info, absl::ByAnyChar("\r\n"))) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, ':');
    const auto known = fields.find(field.first);
    double value = 0;
    if (known != fields.end() && absl::SimpleAtod(field.second, &value)) *known->second += value;
  }
  return work;
}

void AddDifference(const Work& before, const Work& after, Work& sum) {
  for (double Work::*const field :
       {&Work::server_seconds, &Work::redis_seconds, &Work::redis_commands, &Work::redis_bytes,
        &Work::redis_memory, &Work::server_memory}) {
    sum.*field += after.*field - before.*field;
  }
}

std::string Describe(const Store& store, const RankCounts& counts) {
  std::string text = absl::StrFormat("%s, %d ranks", store.name, counts.ranks);
  if (counts.jobs > 1) absl::StrAppendFormat(&text, " in %d jobs", counts.jobs);
  if (counts.on_a_connection == 1) absl::StrAppend(&text, ", each its connection");
  return text;
}

absl::Status RunWith(Bench& bench, const Store& store, const Servers& servers,
                     const RankCounts& counts) {
  std::vector<std::string> addresses;
  for (const RunningServer& server : servers) addresses.push_back(server.tcp);
  RankCalls calls(addresses, counts);
  const std::string what = Describe(store, counts);
  const int steps = bench.settings.quick ? 2 : std::max(20, 4000 / static_cast<int>(counts.ranks));
  Comparison comparison;
  double seconds = 0;
  Work work;
  Work first;
  for (int step = -2; step < steps; ++step) {
    const absl::StatusOr<Work> before = WorkOf(servers, store);
    if (!before.ok()) return before.status();
    const absl::StatusOr<RankCalls::Step> together = calls.Run(what, step + 2);
    if (!together.ok()) return together.status();
    const absl::StatusOr<Work> after = WorkOf(servers, store);
    if (!after.ok()) return after.status();
    AddDifference(*before, *after, step < 0 ? first : work);
    const absl::StatusOr<RankCalls::Step> alone = calls.Run(std::nullopt, 0);
    if (!alone.ok()) return alone.status();
    if (step < 0) continue;
    comparison.ours.push_back(together->answer_seconds);
    comparison.limit.push_back(alone->answer_seconds);
    seconds += together->seconds;
  }
  for (const Row& row : LatencyRows(what, "as many calls alone", comparison, std::nullopt)) {
    bench.report.Add(row);
  }
  const double rank_steps = static_cast<double>(counts.ranks) * steps;
  std::string note = absl::StrFormat(
      "%s: %.4g steps/s; of the servers' processors %.0f us per rank and step; memory grown by "
      "%.1f KiB per rank",
      what, counts.jobs * steps / seconds, work.server_seconds / rank_steps * 1e6,
      first.server_memory / counts.ranks / 1024);
  if (store.redis != nullptr) {
    absl::StrAppendFormat(
        &note,
        "; Redis, per rank and step: %.0f us, %.2f commands (those within scripts "
        "included), %.0f bytes to it and from it, %.0f bytes kept",
        work.redis_seconds / rank_steps * 1e6, work.redis_commands / rank_steps,
        work.redis_bytes / rank_steps, work.redis_memory / rank_steps);
  }
  bench.report.Note(note);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRanks(Bench& bench) {
  bench.report.BeginSection(
      "ranks", "time from the last rank's last message to the last answer, one step at a time");
  const RedisServer redis;
  std::vector<RankCounts> all = {{.ranks = 8}};
  if (!bench.settings.quick) {
    all = {{.ranks = 8},
           {.ranks = 64},
           {.ranks = 512},
           {.ranks = 4096},
           {.ranks = 4000, .jobs = 1000},
           {.ranks = 2048, .on_a_connection = 1}};
  }
  for (const Store& store :
       {Store{"memory, 1 server", 1, nullptr}, Store{"Redis, 1 server", 1, &redis},
        Store{"Redis, 3 servers", 3, &redis}}) {
    std::vector<std::string> flags = kManyRanks;
    if (store.redis != nullptr) {
      flags.push_back(absl::StrCat("--group-store=redis://", store.redis->address().Describe()));
    }
    for (const RankCounts& counts : all) {
      Servers servers;  // new ones, for what memory they take
      for (int i = 0; i < store.servers; ++i) {
        absl::StatusOr<RunningServer> server = StartOursWith(bench.folder, flags);
        if (!server.ok()) return server.status();
        servers.push_back(*std::move(server));
      }
      if (absl::Status run = RunWith(bench, store, servers, counts); !run.ok()) return run;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
