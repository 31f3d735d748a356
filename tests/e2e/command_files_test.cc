// The files that the command writes, and all that it prints about them.
#include <gmock/gmock.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <sstream>

#include "absl/time/clock.h"
#include "gradclip/v1/gradclip.pb.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/command_fixture.h"

namespace gradclip {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::UnorderedElementsAreArray;

template <typename Element>
std::string BytesOf(const std::vector<Element>& elements) {
  return {reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(Element)};
}

const std::string kFortranHeader = "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2), }\n";

std::string NpyOf(const std::vector<float>& two) {
  return Npy(1, kFortranHeader, BytesOf(two));
}

TEST_F(Command, ClipsANpyFileOntoItselfAndKeepsItsHeader) {
  WriteFile(Out("w.npy"), NpyOf({3, 4}));
  const Ran ran =
      Run({"clip", Out("w.npy"), "--max-norm", "2.5", "--epsilon", "0", "-o", Out("w.npy")});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("coefficient  0.5\n"));
  EXPECT_EQ(ReadFile(Out("w.npy")), NpyOf({1.5, 2}));
  EXPECT_EQ(folder_.entries(), 1u);
}

TEST_F(Command, ClipsSeveralFilesIntoAFolderAsOneGradient) {
  // Spaces behind the header, metadata, and data in another order than the header's.
  const std::string header = R"({"__metadata__":{"step":"60"},)"
                             R"("a":{"dtype":"F64","shape":[1],"data_offsets":[8,16]},)"
                             R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}   )";
  const auto safetensors = [&](const std::vector<float>& b, double a) {
    return Safetensors(header, BytesOf(b) + BytesOf(std::vector<double>{a}));
  };
  WriteFile(Out("layers.safetensors"), safetensors({0, 3}, 12));
  WriteFile(Out("head.npy"), NpyOf({4, 0}));
  for (const std::string reply : {"coefficient", "gradient", "if-changed"}) {
    const std::string out = Out(reply);
    const Ran ran = Run({"clip", Out("layers.safetensors"), Out("head.npy"), "--max-norm", "6.5",
                         "--epsilon", "0", "-o", out, "--reply", reply, "--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(json::parse(ran.out)["norm"]["total_norm"], 13);
    EXPECT_EQ(ReadFile(out + "/layers.safetensors"), safetensors({0, 1.5}, 6));
    EXPECT_EQ(ReadFile(out + "/head.npy"), NpyOf({2, 0}));
  }
  EXPECT_EQ(ReadFile(Out("head.npy")), NpyOf({4, 0}));
}

TEST_F(Command, NamesTensorsOfFilesWhoseNamesAreNotUtf8) {
  WriteFile(Out("gr\xffx.npy"), NpyOf({3, 4}));
  const Ran ran = Run({"norm", Out("gr\xffx.npy"), "--per-tensor", "--json"});
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(json::parse(ran.out)["tensors"][0]["name"], "gr\\xffx");
}

TEST_F(Command, ListsTheLargestNormFirst) {
  WriteFile(Out("small.npy"), NpyOf({0, 1}));
  WriteFile(Out("large.npy"), NpyOf({3, 4}));
  const Ran ran = Run({"norm", Out("small.npy"), Out("large.npy"), "--per-tensor", "-q"});
  std::istringstream lines(ran.out.substr(ran.out.find("\n\n") + 2));
  std::string head, first, second;
  std::getline(lines, head);
  std::getline(lines, first);
  std::getline(lines, second);
  EXPECT_THAT(head, testing::StartsWith("norm  elements  non-finite  zeros"));
  EXPECT_THAT(first, testing::ContainsRegex("^5 .* large$"));
  EXPECT_THAT(second, testing::ContainsRegex("^1 .* small$"));
}

// The fields that the contract gives a message; `more` are the command's own.
void ExpectFieldsOf(const google::protobuf::Descriptor& message, const json& object,
                    std::vector<std::string> more = {}) {
  std::vector<std::string> names = std::move(more);
  for (int i = 0; i < message.field_count(); ++i) names.emplace_back(message.field(i)->name());
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.push_back(key);
  EXPECT_THAT(keys, UnorderedElementsAreArray(names)) << message.name();
}

TEST_F(Command, AnswersInJsonWithEveryFieldOfTheContract) {
  WriteFile(Out("w.npy"), NpyOf({3, 4}));
  const json norm = json::parse(Run({"norm", Out("w.npy"), "--per-tensor", "--json"}).out);
  ExpectFieldsOf(*v1::NormResult::descriptor(), norm);
  ExpectFieldsOf(*v1::TensorNorm::descriptor(), norm["tensors"][0], {"name"});
  const json clip =
      json::parse(Run({"clip", Out("w.npy"), "--max-norm", "1", "-o", Out("o.npy"), "--json"}).out);
  ExpectFieldsOf(*v1::ClipResult::descriptor(), clip);
  ExpectFieldsOf(*v1::NormResult::descriptor(), clip["norm"]);
  const json info = json::parse(Run({"info", "--json"}).out);
  ExpectFieldsOf(*v1::GetServerInfoResponse::descriptor(), info);
  ExpectFieldsOf(*v1::Backend::descriptor(), info["backends"][0]);
  EXPECT_EQ(json::parse(Run({"health", "--json"}).out), json({{"status", "SERVING"}}));
}

TEST_F(Command, WritesNanAndInfinityInJsonAsText) {
  WriteFile(Out("nan.npy"), NpyOf({NAN, 4}));
  const json nan = json::parse(
      Run({"clip", Out("nan.npy"), "--max-norm", "1", "-o", Out("o.npy"), "--per-tensor", "--json"})
          .out);
  EXPECT_EQ(nan["norm"]["total_norm"], "NaN");
  EXPECT_EQ(nan["norm"]["tensors"][0]["norm"], "NaN");
  EXPECT_EQ(nan["norm"]["nonfinite_elements"], 1);
  EXPECT_EQ(nan["norm"]["first_nonfinite"], "nan[0]");
  EXPECT_EQ(nan["coefficient"], "NaN");
  WriteFile(Out("inf.npy"), NpyOf({3, -INFINITY}));
  const json infinite = json::parse(Run({"norm", Out("inf.npy"), "--json"}).out);
  EXPECT_EQ(infinite["total_norm"], "Infinity");
}

TEST_F(Command, FollowsThePolicyForGradientsThatAreNotFinite) {
  WriteFile(Out("nan.npy"), NpyOf({NAN, 4}));
  const auto clip = [&](const std::string& policy) {
    return Run({"clip", Out("nan.npy"), "--max-norm", "1", "-o", Out(policy + ".npy"),
                "--nonfinite", policy});
  };
  const Ran refused = clip("error");
  EXPECT_EQ(refused.status, 1);
  EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1);
  EXPECT_THAT(refused.err, HasSubstr("nan[0]"));
  EXPECT_FALSE(std::filesystem::exists(Out("error.npy")));
  EXPECT_THAT(clip("propagate").out, HasSubstr("so all elements are NaN"));
  const json propagated = json::parse(Run({"norm", Out("propagate.npy"), "--json"}).out);
  EXPECT_EQ(propagated["nonfinite_elements"], 2);
  EXPECT_THAT(clip("skip").out, HasSubstr("so nothing is changed"));
  EXPECT_EQ(ReadFile(Out("skip.npy")), ReadFile(Out("nan.npy")));
  EXPECT_THAT(clip("zero").out, HasSubstr("so all elements are 0"));
  EXPECT_EQ(ReadFile(Out("zero.npy")), NpyOf({0, 0}));
}

TEST_F(Command, TellsWhatBecameOfAGradientThatIsWithinTheLimit) {
  WriteFile(Out("w.npy"), NpyOf({3, 4}));
  const Ran ran =
      Run({"clip", Out("w.npy"), "--max-norm", "10", "--pre-scale", "0.5", "-o", Out("o.npy")});
  EXPECT_THAT(ran.out, HasSubstr("no, the limit is 10; all elements are multiplied by 0.5"));
  EXPECT_EQ(ReadFile(Out("o.npy")), NpyOf({1.5, 2}));
}

TEST_F(Command, ClipsByANormThatIsKnown) {
  WriteFile(Out("w.npy"), NpyOf({3, 4}));
  const Ran ran = Run({"clip", Out("w.npy"), "--max-norm", "1", "--epsilon", "0", "--total-norm",
                       "4", "-o", Out("o.npy"), "-q"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ReadFile(Out("o.npy")), NpyOf({0.75, 1}));
}

TEST_F(Command, MeasuresTheServersSpeed) {
  for (const std::string dtype : {"F32", "F16", "BF16", "F64"}) {
    const Ran ran = Run({"bench", "--bytes", "64KiB", "--tensors", "3", "--rounds", "2", "--dtype",
                         dtype, "--reply", "if-changed", "--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const json answer = json::parse(ran.out);
    EXPECT_EQ(answer["bytes"], 65536);
    EXPECT_EQ(answer["dtype"], dtype);
    EXPECT_GT(answer["gigabytes_per_second"], 0);
    EXPECT_GE(answer["p99_seconds"], answer["p50_seconds"]);
  }
  const Ran people = Run({"bench", "--bytes", "64KiB", "--rounds", "1"});
  EXPECT_THAT(people.out, HasSubstr("of gradient, median"));
  EXPECT_GT(std::stod(Run({"bench", "--bytes", "64KiB", "--rounds", "1", "-q"}).out), 0);

  // In each of the six runs one call learns the norm, and all that are counted clip.
  server_.process().Signal(SIGTERM);
  ASSERT_EQ(server_.process().Wait(), 0);
  std::istringstream log(server_.process().err());
  int learn = 0, clip = 0;
  for (std::string line; std::getline(log, line);) {
    if (line.find("ClipGradNorm") == std::string::npos) continue;
    ++(line.find(", coefficient 1,") == std::string::npos ? clip : learn);
  }
  EXPECT_EQ(learn, 6);
  EXPECT_EQ(clip, 4 * 2 + 1 + 1);
}

TEST_F(Command, TellsPeopleAboutTheServer) {
  const Ran info = Run({"info"});
  EXPECT_THAT(info.out, HasSubstr(server_.address()));
  EXPECT_THAT(info.out, HasSubstr("in use"));
  EXPECT_EQ(Run({"health"}).out, "SERVING\n");
}

TEST_F(Command, LeavesNothingBehindWhereTheSystemRefusesTheBytes) {
  const std::string file = kGradients + "step-090.safetensors";
  WriteFile(Out("o.safetensors"), "before");
  // The command starts with this process's limit: less than the file's 1.4 MB, and more than what
  // a build that counts lines writes on its own.
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small { 1 << 20, before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Ran ran = Run({"clip", file, "--max-norm", "1", "-o", Out("o.safetensors")});
  const Ran several = Run(
      {"clip", file, kGradients + "step-060.safetensors", "--max-norm", "1", "-o", Out("folder")});
  const Ran nested = Run({"clip", file, kGradients + "step-060.safetensors", "--max-norm", "1",
                          "-o", Out("folder/nested")});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(ran.status, 1);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err, "gradclip: can't write " + Out("o.safetensors") + ": File too large\n");
  EXPECT_EQ(ReadFile(Out("o.safetensors")), "before");
  EXPECT_EQ(several.status, 1);
  EXPECT_EQ(nested.status, 1);
  EXPECT_EQ(folder_.entries(), 1u);
}

TEST_F(Command, LeavesTheOldFileWholeWhereItIsKilledWhileItWrites) {
  const std::string header =
      R"({"w":{"dtype":"F32","shape":[8388608],"data_offsets":[0,33554432]}})";
  const std::string old = Safetensors(header, BytesOf(std::vector<float>(8388608, 1.0f)));
  const std::string clipped = Safetensors(header, BytesOf(std::vector<float>(8388608, 0.5f)));
  const std::string path = Out("w.safetensors");
  const std::vector<std::string> arguments = WithServer(
      {"clip", path, "--total-norm", "2", "--max-norm", "1", "--epsilon", "0", "-o", path});
  for (const int signal : {SIGKILL, SIGTERM}) {
    // The signal may come when all is written: again, until it came before.
    bool interrupted = false;
    for (int run = 0; run < 100 && !interrupted; ++run) {
      WriteFile(path, old);
      Process command("gradclip", arguments);
      const auto unwritten = std::filesystem::last_write_time(path);
      const absl::Time give_up = absl::Now() + absl::Minutes(2);
      // Until the temporary file is there, or came and went.
      while (folder_.entries() == 1 && std::filesystem::last_write_time(path) == unwritten &&
             absl::Now() < give_up) {
      }
      command.Signal(signal);
      const int status = command.Wait();
      const std::string left = ReadFile(path);
      interrupted = status == 128 + signal && left == old;
      ASSERT_TRUE(status == 128 + signal || status == 0) << status << ": " << command.err();
      ASSERT_TRUE(interrupted || left == clipped) << status;
      // Only a process that had no warning leaves its temporary file.
      ASSERT_EQ(folder_.entries(), interrupted && signal == SIGKILL ? 2u : 1u);
      for (const auto& entry : std::filesystem::directory_iterator(Out(""))) {
        if (entry.path().extension() == ".tmp") std::filesystem::remove(entry.path());
      }
    }
    EXPECT_TRUE(interrupted) << "by signal " << signal;
  }
}

TEST_F(Command, SendsMessagesAsSmallAsTheServerWantsThem) {
  ServerProcess server({"--max-message-bytes=64KiB"});
  const std::string file = std::string(GRADCLIP_TEST_DATA) + "/gradients/step-060.safetensors";
  for (const char* size : {"1MiB", "128KiB"}) {  // refused by gRPC, and by the server
    Process refused("gradclip",
                    {"norm", file, "--server", server.address(), "--message-bytes", size});
    EXPECT_EQ(refused.Wait(), 1);
    EXPECT_THAT(refused.err(), HasSubstr("--max-message-bytes"));
    EXPECT_THAT(refused.err(), HasSubstr("; --message-bytes makes them smaller"));
  }
  Process norm("gradclip", {"norm", file, "--server", server.address(), "--message-bytes=60KiB"});
  EXPECT_EQ(norm.Wait(), 0) << norm.err();
}

}  // namespace
}  // namespace gradclip
