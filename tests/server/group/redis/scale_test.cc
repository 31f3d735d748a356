// Many ranks, and what a step costs Redis.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>
#include <vector>

#include "absl/time/clock.h"
#include "tests/server/group/redis/redis_fixture.h"

namespace gradclip {
namespace {

class RedisScale : public RedisFixture {
 protected:
  RedisScale() {
    UseServer(server_);
    options_.timeout = absl::Minutes(1);
  }

  // The number that a line of INFO gives: NAME:NUMBER, or NAME:...,FIELD=NUMBER.
  double Info(const std::string& section, const std::string& name,
              const std::string& field = "calls") const {
    std::istringstream lines(server_.Ask({"INFO", section}));
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with(name + ":")) continue;
      std::string value = line.substr(name.size() + 1);
      const size_t found = value.find(field + "=");
      return std::stod(found == std::string::npos ? value : value.substr(found + field.size() + 1));
    }
    return 0;
  }

  RedisServer server_;
};

TEST_F(RedisScale, AStepOfThousandsOfRanksCostsTwoScriptsARankAndOneFetchAServer) {
  constexpr uint32_t kRanks = 4096;
  constexpr uint64_t kServers = 3;
  std::vector<std::unique_ptr<RedisStore>> stores;
  for (uint64_t i = 0; i < kServers; ++i) stores.push_back(Make());
  for (const auto& store : stores) store->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"CONFIG", "RESETSTAT"}), "OK");
  const double memory = Info("memory", "used_memory");

  const absl::Time began = absl::Now();
  std::vector<Call> calls;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    calls.push_back(Join(*stores[rank % kServers], Rank(rank, kRanks)));
  }
  for (const auto& store : stores) store->WaitUntilIdle();
  const absl::Time joined = absl::Now();
  for (const Call& call : calls) call.Contribute(1);
  for (const Call& call : calls) {
    ASSERT_TRUE(call.Get().ok()) << call.status();
    EXPECT_EQ((*call.Get())->total.Norm(), 64);
  }
  const absl::Time answered = absl::Now();

  const double scripts = Info("commandstats", "cmdstat_evalsha");
  EXPECT_GE(scripts, 2.0 * kRanks);
  EXPECT_EQ(Info("commandstats", "cmdstat_hgetall"), static_cast<double>(kServers));
  // (Each of the other servers is told once, whoever commits.)
  EXPECT_EQ(Info("commandstats", "cmdstat_publish"), static_cast<double>(kServers - 1));
  std::printf(
      "%u ranks over %d servers: joins %.1f ms, contributions to answers %.1f ms\n"
      "  per rank: %.2f scripts, %.0f bytes to Redis, %.0f bytes from it, %.0f bytes kept\n",
      kRanks, static_cast<int>(kServers), absl::ToDoubleMilliseconds(joined - began),
      absl::ToDoubleMilliseconds(answered - joined), scripts / kRanks,
      Info("stats", "total_net_input_bytes") / kRanks,
      Info("stats", "total_net_output_bytes") / kRanks,
      (Info("memory", "used_memory") - memory) / kRanks);
}

TEST_F(RedisScale, StepsOfFewRanksFollowOneAnother) {
  constexpr uint32_t kRanks = 8;
  constexpr uint64_t kSteps = 300;
  std::vector<std::unique_ptr<RedisStore>> stores;
  for (int i = 0; i < 2; ++i) stores.push_back(Make());
  for (const auto& store : stores) store->WaitUntilIdle();
  EXPECT_EQ(server_.Ask({"CONFIG", "RESETSTAT"}), "OK");
  const absl::Time began = absl::Now();
  for (uint64_t step = 0; step < kSteps; ++step) {
    std::vector<Call> calls;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      calls.push_back(Join(*stores[rank % 2], Rank(rank, kRanks, step)));
      calls.back().Contribute(2);
    }
    for (const Call& call : calls) {
      ASSERT_TRUE(call.Get().ok()) << call.status();
      EXPECT_EQ((*call.Get())->total.Norm(), 4);
    }
  }
  // Once a step by the script, for both servers. Whoever asks only then fetches.
  const double fetches = Info("commandstats", "cmdstat_hgetall") / kSteps;
  EXPECT_GE(fetches, 1.0);
  EXPECT_LE(fetches, 3.0);
  const double answers = static_cast<double>(kRanks * kSteps);
  std::printf(
      "%u ranks over 2 servers: %.0f steps/s; per rank and step: %.2f scripts (%.1f us "
      "each), %.0f bytes to Redis, %.0f from it\n",
      kRanks, kSteps / absl::ToDoubleSeconds(absl::Now() - began),
      Info("commandstats", "cmdstat_evalsha") / answers,
      Info("commandstats", "cmdstat_evalsha", "usec_per_call"),
      Info("stats", "total_net_input_bytes") / answers,
      Info("stats", "total_net_output_bytes") / answers);
}

TEST_F(RedisScale, AStepOfTwoRanksTakesSomeRoundTrips) {
  constexpr size_t kSteps = 500;
  const std::unique_ptr<RedisStore> one = Make();
  const std::unique_ptr<RedisStore> other = Make();
  one->WaitUntilIdle();
  other->WaitUntilIdle();
  const auto median = [](std::vector<double>& times) {
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  };
  std::vector<double> steps;
  for (size_t step = 0; step < kSteps; ++step) {
    const absl::Time began = absl::Now();
    const Call first = Join(*one, Rank(0, 2, step));
    const Call second = Join(*other, Rank(1, 2, step));
    first.Contribute(9);
    second.Contribute(16);
    ASSERT_TRUE(first.Get().ok()) << first.status();
    ASSERT_TRUE(second.Get().ok()) << second.status();
    steps.push_back(absl::ToDoubleMicroseconds(absl::Now() - began));
  }
  const std::unique_ptr<redisContext, decltype(&redisFree)> context(
      redisConnect("127.0.0.1", server_.port()), &redisFree);
  std::vector<double> trips;
  for (size_t i = 0; i < kSteps; ++i) {
    const absl::Time began = absl::Now();
    const RedisReply pong(static_cast<redisReply*>(redisCommand(context.get(), "PING")));
    ASSERT_NE(pong, nullptr);
    trips.push_back(absl::ToDoubleMicroseconds(absl::Now() - began));
  }
  const double step = median(steps), trip = median(trips);
  std::printf(
      "2 ranks over 2 servers, p50: %.0f us a step; a PING on a connection of its own "
      "%.0f us\n",
      step, trip);
}

}  // namespace
}  // namespace gradclip
