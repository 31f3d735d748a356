// Ranks, servers and Redis are killed and stand still, and what the ranks were told is checked
// against the guarantee of server/group/README.md. GRADCLIP_CHAOS_SEED and GRADCLIP_CHAOS_STEPS
// choose other faults and a longer run. Servers with a planted fault show that the checker finds it
// in such a run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/time.h"
#include "tests/chaos/chaos_run.h"
#include "tests/chaos/checker.h"

namespace gradclip {
namespace {

using testing::IsEmpty;
using Target = Fault::Target;

uint64_t NumberOr(const char* variable, uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  uint64_t number = 0;
  return text != nullptr && absl::SimpleAtoi(text, &number) ? number : otherwise;
}

std::map<Told, int> CountWhatIsTold(const std::vector<Call>& calls) {
  std::map<Told, int> counts;
  for (const Call& call : calls) ++counts[WhatIsTold(call)];
  return counts;
}

TEST(PlanFaults, IsDecidedByTheSeed) {
  const auto plan = [](uint64_t seed) {
    std::string text;
    for (const Fault& fault : PlanFaults(seed, 16, 3, absl::Seconds(20))) {
      text += Describe(fault) + "\n";
    }
    return text;
  };
  EXPECT_EQ(plan(1), plan(1));
  EXPECT_NE(plan(1), plan(2));
}

TEST(Chaos, KeepsTheGuaranteeWhileRanksServersAndRedisFail) {
  const uint64_t steps = NumberOr("GRADCLIP_CHAOS_STEPS", 60);
  ChaosRun run("gradclip-server", NumberOr("GRADCLIP_CHAOS_SEED", 1), steps);
  EXPECT_THAT(run.Run(absl::Seconds(steps) / 3), IsEmpty());
  const std::vector<Call> calls = run.ReadCalls();
  EXPECT_THAT(FindViolations(calls, ChaosRun::kRanks), IsEmpty());

  // Enough has happened for that to mean something.
  const std::map<Told, int> told = CountWhatIsTold(calls);
  for (const Target target : {Target::kRank, Target::kServer, Target::kRedis}) {
    EXPECT_GT(run.kills(target), 0);
    EXPECT_GT(run.freezes(target), 0);
  }
  EXPECT_GE(told.at(Told::kCommitted), static_cast<int>(steps * ChaosRun::kRanks));
  for (const Told kind : {Told::kUnknown, Told::kAborted, Told::kOver, Told::kTaken}) {
    ASSERT_EQ(told.count(kind), 1u) << static_cast<int>(kind);
  }
  std::printf(
      "%zu calls: %d committed, %d aborted, %d over, %d unknown. Killed and frozen: ranks %d, %d; "
      "servers %d, %d; Redis %d, %d\n",
      calls.size(), told.at(Told::kCommitted), told.at(Told::kAborted), told.at(Told::kOver),
      told.at(Told::kUnknown), run.kills(Target::kRank), run.freezes(Target::kRank),
      run.kills(Target::kServer), run.freezes(Target::kServer), run.kills(Target::kRedis),
      run.freezes(Target::kRedis));
}

// Whether the checker finds this in a run of servers in which a fault is planted.
bool Finds(const std::string& violation, const std::string& server) {
  ChaosRun run(server, NumberOr("GRADCLIP_CHAOS_SEED", 1), /*steps=*/200);
  const auto is_found = [&] {
    const std::vector<std::string> violations = FindViolations(run.ReadCalls(), ChaosRun::kRanks);
    return std::any_of(violations.begin(), violations.end(), [&](const std::string& found) {
      return found.find(violation) != std::string::npos;
    });
  };
  // Ranks may give up, or never end, for what they are told. Much of a time of faults goes into
  // waiting.
  run.Run(absl::Seconds(4), is_found);
  return is_found();
}

TEST(Chaos, FindsASecondCommit) {
  EXPECT_TRUE(
      Finds("two attempts of one step are committed", "gradclip-server-with-second-commit"));
}

TEST(Chaos, FindsAnAnswerThatDiffers) {
  EXPECT_TRUE(
      Finds("two answers of one attempt differ", "gradclip-server-with-answer-that-differs"));
}

TEST(Chaos, FindsALostAbort) {
  EXPECT_TRUE(Finds("an attempt is both committed and aborted", "gradclip-server-with-lost-abort"));
}

}  // namespace
}  // namespace gradclip
