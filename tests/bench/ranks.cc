// How many ranks can meet, and how fast: tiny shards, the store in memory and in Redis.
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
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
const std::vector<std::string> kManyRanks = {
    "--max-calls=20000", "--max-calls-per-caller=20000", "--max-streams-per-connection=10000",
    "--max-connections-per-peer=1000", "--log-level=warning"};

struct Store {
  std::string name;
  int servers;
  const RedisServer* redis;  // null: in the server's memory
};

// What Redis has been given to do so far.
struct RedisWork {
  double commands = 0;
  double bytes = 0;
};

RedisWork WorkOf(const RedisServer& redis) {
  RedisWork work;
  const std::string info = redis.Ask({"INFO", "stats"});
  for (const absl::string_view line : absl::StrSplit(info, absl::ByAnyChar("\r\n"))) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, ':');
    double value = 0;
    if (!absl::SimpleAtod(field.second, &value)) continue;
    if (field.first == "total_commands_processed") work.commands = value;
    if (field.first == "total_net_input_bytes" || field.first == "total_net_output_bytes") {
      work.bytes += value;
    }
  }
  return work;
}

absl::Status RunWith(Bench& bench, const Store& store, const std::vector<std::string>& addresses,
                     uint32_t ranks) {
  RankCalls calls(addresses, ranks);
  const std::string job = absl::StrCat(store.name, ranks);
  const int steps = bench.settings.quick ? 2 : std::max(20, 4000 / static_cast<int>(ranks));
  Comparison comparison;
  double seconds = 0;
  std::optional<RedisWork> before;
  for (int step = -2; step < steps; ++step) {
    if (step == 0 && store.redis != nullptr) before = WorkOf(*store.redis);
    const absl::StatusOr<RankCalls::Step> together = calls.Run(job, step + 2);
    if (!together.ok()) return together.status();
    const absl::StatusOr<RankCalls::Step> alone = calls.Run(std::nullopt, 0);
    if (!alone.ok()) return alone.status();
    if (step < 0) continue;
    comparison.ours.push_back(together->answer_seconds);
    comparison.limit.push_back(alone->answer_seconds);
    seconds += together->seconds;
  }
  const std::string what = absl::StrFormat("%s, %d ranks", store.name, ranks);
  for (const Row& row : LatencyRows(what, "as many calls alone", comparison, std::nullopt)) {
    bench.report.Add(row);
  }
  std::string note = absl::StrFormat("%s: %.0f steps/s", what, steps / seconds);
  if (before.has_value()) {
    const RedisWork after = WorkOf(*store.redis);
    const double rank_steps = static_cast<double>(ranks) * steps;
    absl::StrAppendFormat(&note,
                          ", %.2f Redis commands (those within scripts included) and %.0f bytes "
                          "per rank and step",
                          (after.commands - before->commands) / rank_steps,
                          (after.bytes - before->bytes) / rank_steps);
  }
  bench.report.Note(note);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRanks(Bench& bench) {
  bench.report.BeginSection(
      "ranks", "time from the last rank's last message to the last answer, one step at a time");
  const RedisServer redis;
  const std::vector<uint32_t> counts =
      bench.settings.quick ? std::vector<uint32_t>{8} : std::vector<uint32_t>{8, 64, 512, 4096};
  for (const Store& store :
       {Store{"memory, 1 server", 1, nullptr}, Store{"Redis, 1 server", 1, &redis},
        Store{"Redis, 3 servers", 3, &redis}}) {
    std::vector<std::string> flags = kManyRanks;
    if (store.redis != nullptr) {
      flags.push_back(absl::StrCat("--group-store=redis://", store.redis->address().Describe()));
    }
    std::vector<RunningServer> servers;
    std::vector<std::string> addresses;
    for (int i = 0; i < store.servers; ++i) {
      absl::StatusOr<RunningServer> server = StartOursWith(bench.folder, flags);
      if (!server.ok()) return server.status();
      addresses.push_back(server->tcp);
      servers.push_back(*std::move(server));
    }
    for (const uint32_t ranks : counts) {
      if (absl::Status run = RunWith(bench, store, addresses, ranks); !run.ok()) return run;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradclip::bench
