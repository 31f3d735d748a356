// What the server's own limits keep attacks from holding. Not under sanitizers, whose memory is
// another.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/e2e/process.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/trial.h"

namespace gradclip::hostile {
namespace {

constexpr uint64_t kMB = 1'000'000;

const Attack& Named(const std::string& name) {
  for (const auto* attacks : {&AttacksOnStreams(), &AttacksOnMemory(), &AttacksOnConnections()}) {
    for (const Attack& attack : *attacks) {
      if (attack.name == name) return attack;
    }
  }
  ADD_FAILURE() << "no attack " << name;
  return AttacksOnStreams().front();
}

// The bounds are some three times what was seen, and as much less than what is held without the
// limit.
void ExpectHeldAtMost(uint64_t bytes, const std::string& attack,
                      const std::vector<std::string>& flags = {}) {
  ServerProcess server(flags);
  const Figures figures = RunTrial(Named(attack), server.address(), server.process().pid());
  EXPECT_FALSE(figures.died) << attack;
  EXPECT_TRUE(figures.after.has_value()) << attack << ": no call was answered afterwards";
  EXPECT_LE(figures.peak_bytes, bytes) << attack;
}

TEST(Bounds, OfCallsThatAreResetAtOnce) {
  ExpectHeldAtMost(400 * kMB, "rapid-reset-unary");  // 3,750 MB
}

TEST(Bounds, OfCallsThatAreLeft) {
  ExpectHeldAtMost(100 * kMB, "left-streaming");  // 1,034 MB
}

TEST(Bounds, OfAClientThatAcknowledgesNoLimit) {
  ExpectHeldAtMost(500 * kMB, "left-unheld");  // 1,005 MB
}

TEST(Bounds, OfMessagesThatAreLeftUnfinished) {
  ExpectHeldAtMost(60 * kMB, "unfinished-streamed", {"--max-transport-bytes=16MiB"});  // 270 MB
}

}  // namespace
}  // namespace gradclip::hostile
