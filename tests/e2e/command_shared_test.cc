// The command with --shared, against servers that share memory and one that does not.
#include <gmock/gmock.h>

#include <algorithm>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/e2e/command_fixture.h"

namespace gradclip {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class SharedCommand : public Command {
 protected:
  SharedCommand() : Command(/*shares=*/true) {}
};

const std::string kSpike = kGradients + "step-090.safetensors";

TEST_F(SharedCommand, MeasuresToTheSameBits) {
  for (const std::string stem : {"step-001", "step-060-bf16", "step-090"}) {
    const std::string file = kGradients + stem + ".safetensors";
    const Ran streamed = Run({"norm", file, "--per-tensor", "--json"});
    const Ran shared = Run({"norm", file, "--per-tensor", "--json", "--shared"});
    ASSERT_EQ(shared.status, 0) << shared.err;
    EXPECT_EQ(shared.err, "");
    EXPECT_EQ(shared.out, streamed.out);
  }
  EXPECT_THAT(Run({"norm", kSpike, "--shared"}).out, HasSubstr("\nshared memory  yes\n"));
  EXPECT_THAT(Run({"norm", kSpike}).out, Not(HasSubstr("shared memory")));
}

TEST_F(SharedCommand, ClipsToTheSameBytesWhoeverMultiplies) {
  const std::string second = kGradients + "step-060-bf16.safetensors";
  const auto clip = [&](const std::string& out, std::vector<std::string> more) {
    more.insert(more.begin(), {"clip", kSpike, second, "--max-norm", "0.5", "-o", Out(out)});
    const Ran ran = Run(more);
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(ran.err, "");
    return ReadFile(Out(out) + "/step-090.safetensors") +
           ReadFile(Out(out) + "/step-060-bf16.safetensors");
  };
  const std::string streamed = clip("streamed", {});
  EXPECT_TRUE(clip("default", {"--shared"}) == streamed);
  for (const std::string reply : {"coefficient", "gradient", "if-changed"}) {
    EXPECT_TRUE(clip(reply, {"--shared", "--reply", reply}) == streamed) << reply;
  }
  const std::string known = clip("known", {"--total-norm", "3"});
  EXPECT_FALSE(known == streamed);
  EXPECT_TRUE(clip("known", {"--total-norm", "3", "--shared"}) == known);
}

TEST_F(SharedCommand, LeavesAGradientWithinTheLimitAsItIs) {
  const std::string file = kGradients + "step-060.safetensors";
  const Ran ran = Run({"clip", file, "--max-norm", "1", "-o", Out("same.safetensors"), "--shared"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("shared memory  yes"));
  EXPECT_TRUE(ReadFile(Out("same.safetensors")) == ReadFile(file));
}

TEST_F(SharedCommand, MeasuresItsSpeed) {
  for (const std::string reply : {"coefficient", "gradient", "if-changed"}) {
    const Ran ran = Run({"bench", "--shared", "--bytes", "1MiB", "--tensors", "100", "--rounds",
                         "5", "--reply", reply, "--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const json answer = json::parse(ran.out);
    EXPECT_EQ(answer["shared"], true);
    EXPECT_EQ(answer["reply"], reply);
  }
  EXPECT_THAT(Run({"bench", "--shared", "--bytes", "4KiB"}).out, HasSubstr("shared memory  yes"));
}

TEST_F(SharedCommand, ShowsTheSocketAndHugePages) {
  EXPECT_THAT(Run({"info"}).out, AllOf(HasSubstr("shared memory  " + memory_socket() + "\n"),
                                       HasSubstr("\nhuge pages     ")));
  EXPECT_EQ(json::parse(Run({"info", "--json"}).out)["memory_socket"], memory_socket());
}

TEST_F(Command, StreamsWhereTheServerDoesNotShareMemoryAndSaysSo) {
  const Ran ran = Run({"clip", kSpike, "--max-norm", "1", "-o", Out("x.safetensors"), "--shared"});
  ASSERT_EQ(ran.status, 0);
  EXPECT_THAT(ran.err, AllOf(StartsWith("gradclip: the gradient is streamed: server "),
                             HasSubstr("it has no memory socket"), EndsWith("\n")));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1);
  EXPECT_THAT(ran.out, HasSubstr("shared memory  no: it has no memory socket"));
  ASSERT_EQ(Run({"clip", kSpike, "--max-norm", "1", "-o", Out("y.safetensors")}).status, 0);
  EXPECT_TRUE(ReadFile(Out("x.safetensors")) == ReadFile(Out("y.safetensors")));
}

TEST_F(Command, MeasuresNothingElseThanWhatItWasAskedTo) {
  const Ran ran = Run({"bench", "--shared", "--bytes", "4KiB"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_EQ(ran.out, "");
  EXPECT_THAT(ran.err, HasSubstr("can't share memory: it has no memory socket"));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1);
}

}  // namespace
}  // namespace gradclip
