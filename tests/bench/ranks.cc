// How many ranks can meet, and how fast: tiny shards, the store in memory and in Redis.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <tuple>
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

// What the servers' processes have taken so far, all together.
struct ServerWork {
  double seconds = 0;      // of the processors
  double peak_memory = 0;  // the most bytes that they ever held
};

absl::StatusOr<ServerWork> WorkOf(const Servers& servers) {
  ServerWork work;
  for (const RunningServer& server : servers) {
    const absl::StatusOr<double> seconds = server.process->CpuSeconds();
    if (!seconds.ok()) return seconds.status();
    work.seconds += *seconds;
    const absl::StatusOr<uint64_t> memory = server.process->MemoryBytes("VmHWM");
    if (!memory.ok()) return memory.status();
    work.peak_memory += static_cast<double>(*memory);
  }
  return work;
}

// What Redis has taken and done so far.
struct RedisWork {
  double seconds = 0;  // of the processor
  double commands = 0;
  double bytes = 0;   // to it and from it
  double memory = 0;  // bytes in use
};

RedisWork WorkOf(const RedisServer& redis) {
  RedisWork work;
  const std::map<absl::string_view, double*> fields = {{"used_cpu_user", &work.seconds},
                                                       {"used_cpu_sys", &work.seconds},
                                                       {"total_commands_processed", &work.commands},
                                                       {"total_net_input_bytes", &work.bytes},
                                                       {"total_net_output_bytes", &work.bytes},
                                                       {"used_memory", &work.memory}};
  const std::string info = redis.Ask({"INFO"});
  for (const absl::string_view line : absl::StrSplit(info, absl::ByAnyChar("\r\n"))) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, ':');
    const auto known = fields.find(field.first);
    double value = 0;
    if (known != fields.end() && absl::SimpleAtod(field.second, &value)) *known->second += value;
  }
  return work;
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
  double server_seconds = 0;
  double memory_growth = 0;
  std::optional<RedisWork> redis_before;
  for (int step = -2; step < steps; ++step) {
    // (Calls alone are none of Redis's.)
    if (step == 0 && store.redis != nullptr) redis_before = WorkOf(*store.redis);
    const absl::StatusOr<ServerWork> before = WorkOf(servers);
    if (!before.ok()) return before.status();
    const absl::StatusOr<RankCalls::Step> together = calls.Run(what, step + 2);
    if (!together.ok()) return together.status();
    const absl::StatusOr<ServerWork> after = WorkOf(servers);
    if (!after.ok()) return after.status();
    if (step < 0) memory_growth += after->peak_memory - before->peak_memory;
    const absl::StatusOr<RankCalls::Step> alone = calls.Run(std::nullopt, 0);
    if (!alone.ok()) return alone.status();
    if (step < 0) continue;
    comparison.ours.push_back(together->answer_seconds);
    comparison.limit.push_back(alone->answer_seconds);
    seconds += together->seconds;
    server_seconds += after->seconds - before->seconds;
  }
  for (const Row& row : LatencyRows(what, "as many calls alone", comparison, std::nullopt)) {
    bench.report.Add(row);
  }
  const double rank_steps = static_cast<double>(counts.ranks) * steps;
  std::string note = absl::StrFormat(
      "%s: %.4g steps/s; of the servers' processors %.0f us per rank and step; memory grown by "
      "%.1f KiB per rank",
      what, counts.jobs * steps / seconds, server_seconds / rank_steps * 1e6,
      memory_growth / counts.ranks / 1024);
  if (redis_before.has_value()) {
    const RedisWork after = WorkOf(*store.redis);
    absl::StrAppendFormat(
        &note,
        "; Redis, per rank and step: %.0f us, %.2f commands (those within scripts included), %.0f "
        "bytes to it and from it, %.0f bytes kept",
        (after.seconds - redis_before->seconds) / rank_steps * 1e6,
        (after.commands - redis_before->commands) / rank_steps,
        (after.bytes - redis_before->bytes) / rank_steps,
        (after.memory - redis_before->memory) / rank_steps);
  }
  bench.report.Note(note);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRanks(Bench& bench) {
  bench.report.BeginSection(
      "ranks", "time from the last rank's last message to the last answer, one step at a time");
  std::vector<RankCounts> all = {{.ranks = 8}};
  if (!bench.settings.quick) {
    all = {{.ranks = 8},
           {.ranks = 64},
           {.ranks = 512},
           {.ranks = 4096},
           {.ranks = 4000, .jobs = 1000},
           {.ranks = 2048, .on_a_connection = 1}};
  }
  for (const auto& [name, count, in_redis] :
       {std::tuple("memory, 1 server", 1, false), std::tuple("Redis, 1 server", 1, true),
        std::tuple("Redis, 3 servers", 3, true)}) {
    for (const RankCounts& counts : all) {
      // New ones, for the memory that they take.
      std::optional<RedisServer> redis;
      std::vector<std::string> flags = kManyRanks;
      if (in_redis) {
        redis.emplace();
        flags.push_back(absl::StrCat("--group-store=redis://", redis->address().Describe()));
      }
      const Store store = {name, count, in_redis ? &*redis : nullptr};
      Servers servers;
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
