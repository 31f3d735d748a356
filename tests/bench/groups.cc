// What it costs that ranks wait for each other: a step of two ranks against a single caller's call;
// with the store in Redis, against two such calls and the round trips to Redis that a step needs.
#include <hiredis/hiredis.h>

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "tests/bench/caller.h"
#include "tests/bench/distant_port.h"
#include "tests/bench/gradient.h"
#include "tests/bench/sections.h"
#include "tests/server/group/redis/redis_server.h"

namespace gradclip::bench {
namespace {

constexpr int kStepsInRound = 100;
constexpr uint32_t kRanks = 2;
constexpr uint64_t kMessageBytes = uint64_t{1} << 20;
// What a step may take of them: of each of two ranks, one after another, one when it comes and one
// when it has contributed. (Small gradients come with their contribution.)
constexpr int kRoundTrips = 4;
// To Redis in another building, one way.
constexpr absl::Duration kDistance = absl::Microseconds(250);

// A connection to Redis on which to measure its round trip.
class Pinger {
 public:
  explicit Pinger(uint16_t port) : context_(redisConnect("127.0.0.1", port), &redisFree) {}

  absl::Status Ping() {
    const std::unique_ptr<void, decltype(&freeReplyObject)> reply(
        redisCommand(context_.get(), "PING"), &freeReplyObject);
    return reply == nullptr ? absl::UnavailableError("Redis does not answer") : absl::OkStatus();
  }

 private:
  const std::unique_ptr<redisContext, decltype(&redisFree)> context_;
};

class Groups {
 public:
  // addresses: of the ranks' servers. pinger: null with the store in memory.
  Groups(Bench& bench, const std::string& transport, const std::vector<std::string>& addresses,
         Pinger* pinger)
      : bench_(bench), transport_(transport), pinger_(pinger) {
    for (const std::string& address : addresses) {
      callers_.push_back(std::make_unique<Caller>(address));
    }
  }

  absl::Status Run(const std::string& what, const Gradient& gradient) {
    Comparison comparison;
    const int steps = bench_.settings.quick ? 5 : kStepsInRound;
    for (int round = -1; round < bench_.settings.rounds; ++round) {
      Comparison discarded;
      Comparison& into = round < 0 ? discarded : comparison;
      if (absl::Status ran = RunSteps(gradient, steps, into.ours); !ran.ok()) return ran;
      if (absl::Status ran = RunAlone(gradient, steps, into.limit); !ran.ok()) return ran;
    }
    const bool in_memory = pinger_ == nullptr;
    for (const Row& row :
         LatencyRows(absl::StrCat(transport_, ", ", what),
                     in_memory ? "a single caller" : "2 single callers and 4 round trips to Redis",
                     comparison, AtMost(in_memory ? 2 : 1))) {
      bench_.report.Add(row);
    }
    if (!in_memory) {
      bench_.report.Note(
          absl::StrFormat("A round trip to Redis (PING), p50: %.0f us", Median(trips_) * 1e6));
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
    const size_t first = seconds.size();
    for (int i = 0; i < calls; ++i) {
      if (absl::Status added = Add(*callers_[0], messages, seconds); !added.ok()) return added;
    }
    // Round trips one after another, as redis-benchmark -c 1 makes them.
    for (size_t i = first; i < seconds.size() && pinger_ != nullptr; ++i) {
      const absl::StatusOr<double> trip = TimeOf([&] { return pinger_->Ping(); });
      if (!trip.ok()) return trip.status();
      trips_.push_back(*trip);
      seconds[i] = 2 * seconds[i] + kRoundTrips * *trip;
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
  Pinger* const pinger_;
  std::vector<std::unique_ptr<Caller>> callers_;
  std::vector<double> trips_;
  uint64_t step_ = 0;
};

absl::Status RunBoth(Groups groups) {
  if (absl::Status run = groups.Run("1 element", OneElement()); !run.ok()) return run;
  return groups.Run("41 tensors, 1.4 MB", TransformerGradient());
}

absl::Status RunInMemory(Bench& bench) {
  const absl::StatusOr<RunningServer> server = StartOurs(bench.folder);
  if (!server.ok()) return server.status();
  for (const auto& [name, address] :
       {std::pair("TCP", server->tcp), std::pair("unix", server->unix_socket)}) {
    absl::Status run = RunBoth(Groups(bench, name, {address, address}, nullptr));
    if (!run.ok()) return run;
  }
  return absl::OkStatus();
}

// port: where Redis is.
absl::Status RunInRedis(Bench& bench, const std::string& name, uint16_t port) {
  Pinger pinger(port);
  const std::vector<std::string> flags = {absl::StrCat("--group-store=redis://127.0.0.1:", port)};
  const absl::StatusOr<RunningServer> one = StartOursWith(bench.folder, flags);
  if (!one.ok()) return one.status();
  const absl::StatusOr<RunningServer> other = StartOursWith(bench.folder, flags);
  if (!other.ok()) return other.status();
  return RunBoth(Groups(bench, absl::StrCat("TCP, ", name), {one->tcp, other->tcp}, &pinger));
}

}  // namespace

absl::Status RunGroups(Bench& bench) {
  bench.report.BeginSection("groups", "time of a rank's call in a group of two");
  if (absl::Status run = RunInMemory(bench); !run.ok()) return run;
  const RedisServer redis;
  if (absl::Status run = RunInRedis(bench, "Redis", redis.port()); !run.ok()) return run;
  const DistantPort distant(redis.port(), kDistance);
  return RunInRedis(bench, "distant Redis", distant.port());
}

}  // namespace gradclip::bench
