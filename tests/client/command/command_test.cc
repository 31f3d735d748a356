// The gradclip command where it needs no server: how it takes its arguments and how it fails. What
// it does with a server is tested in tests/e2e.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/client/files/file_bytes.h"
#include "tests/e2e/process.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const char kGradient[] = GRADCLIP_TEST_DATA "/gradients/step-060.safetensors";

// The one line on standard error that the command ends with, without its end; its exit status has
// to be 1 and standard output empty.
std::string Failure(const std::vector<std::string>& arguments,
                    const std::vector<std::string>& environment = {}) {
  Process command("gradclip", arguments, environment);
  EXPECT_EQ(command.Wait(), 1) << command.err();
  EXPECT_EQ(command.out(), "");
  std::string line = command.err();
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1) << line;
  EXPECT_THAT(line, AllOf(StartsWith("gradclip: "), EndsWith("\n")));
  return line.substr(0, line.size() - 1);
}

// What the command prints where it succeeds.
std::string Success(const std::vector<std::string>& arguments) {
  Process command("gradclip", arguments);
  EXPECT_EQ(command.Wait(), 0) << command.err();
  EXPECT_EQ(command.err(), "");
  return command.out();
}

TEST(CommandLine, PrintsItsVersion) {
  EXPECT_THAT(Success({"--version"}),
              ::testing::MatchesRegex("gradclip [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(CommandLine, HasHelpForEveryVerb) {
  EXPECT_THAT(Success({"--help"}), AllOf(HasSubstr("norm"), HasSubstr("clip"), HasSubstr("info"),
                                         HasSubstr("health"), HasSubstr("bench")));
  for (const char* verb : {"norm", "clip", "info", "health", "bench"}) {
    EXPECT_THAT(Success({verb, "--help"}),
                AllOf(HasSubstr(std::string("gradclip ") + verb), HasSubstr("--server"),
                      HasSubstr("127.0.0.1:50051"), HasSubstr("--timeout"), HasSubstr("--json")));
  }
}

TEST(CommandLine, RefusesUnknownWordsAndSuggestsTheClosest) {
  EXPECT_EQ(
      Failure({}),
      "gradclip: no command given; there are norm, clip, info, health and bench; see gradclip "
      "--help");
  EXPECT_EQ(Failure({"nrom", kGradient}),
            "gradclip: unknown command nrom (did you mean norm?); see gradclip --help");
  EXPECT_EQ(Failure({"optimise"}), "gradclip: unknown command optimise; see gradclip --help");
  EXPECT_EQ(
      Failure({"clip", kGradient, "--max-nrom", "1", "-o", "x"}),
      "gradclip: unknown flag --max-nrom (did you mean --max-norm?); see gradclip clip --help");
  EXPECT_EQ(
      Failure({"clip", kGradient, "--max_norm=1"}),
      "gradclip: unknown flag --max_norm (did you mean --max-norm?); see gradclip clip --help");
  EXPECT_EQ(Failure({"clip", kGradient, "--output", "x"}),
            "gradclip: unknown flag --output (did you mean --out?); see gradclip clip --help");
  EXPECT_EQ(Failure({"clip", kGradient, "--max", "1"}),
            "gradclip: unknown flag --max (did you mean --max-norm?); see gradclip clip --help");
  EXPECT_EQ(Failure({"norm", kGradient, "--share"}),
            "gradclip: unknown flag --share (did you mean --shared?); see gradclip norm --help");
  EXPECT_EQ(Failure({"help"}),
            "gradclip: unknown command help (did you mean --help?); see gradclip --help");
  EXPECT_EQ(Failure({"version"}),
            "gradclip: unknown command version (did you mean --version?); see gradclip --help");
  EXPECT_EQ(Failure({"info", "-x"}), "gradclip: unknown flag -x; see gradclip info --help");
  EXPECT_EQ(Failure({"health", "now"}),
            "gradclip: unexpected argument now; see gradclip health --help");
  EXPECT_EQ(Failure({"--server", "a:1", "norm", kGradient}),
            "gradclip: unknown flag --server; flags go after the command; see gradclip --help");
  EXPECT_EQ(Failure({"norm", "--a\nb"}),
            "gradclip: unknown flag --a\\x0ab; see gradclip norm --help");
}

TEST(CommandLine, TakesEverythingBehindTwoDashesAsFiles) {
  EXPECT_EQ(Failure({"norm", "--", "-x.npy"}),
            "gradclip: can't read -x.npy: No such file or directory");
  EXPECT_EQ(Failure({"norm", "--json", "--", kGradient, "--none.npy"}),
            "gradclip: can't read --none.npy: No such file or directory");
  EXPECT_THAT(Failure({"norm", "--", "--"}), HasSubstr("--: the name must end in"));
  EXPECT_EQ(Failure({"norm", "-x.npy"}), "gradclip: unknown flag -x.npy; see gradclip norm --help");
}

TEST(CommandLine, RefusesValuesOutsideTheirRange) {
  const auto refused = [](const std::string& flag, const std::string& value) {
    return Failure({"clip", kGradient, "-o", "x", "--max-norm", "1", flag, value});
  };
  EXPECT_EQ(
      refused("--max-norm", "-1"),
      "gradclip: --max-norm: must be a number >= 0, or inf, not -1; see gradclip clip --help");
  EXPECT_THAT(refused("--max-norm", "nan"), HasSubstr("--max-norm: must be"));
  EXPECT_THAT(refused("--max-norm", "ten"), HasSubstr("--max-norm: must be"));
  EXPECT_THAT(refused("--epsilon", "inf"), HasSubstr("--epsilon: must be a finite number >= 0"));
  EXPECT_THAT(refused("--norm-type", "0"), HasSubstr("--norm-type: must be a number over 0"));
  EXPECT_THAT(refused("--pre-scale", "0"),
              HasSubstr("--pre-scale: must be a finite number over 0"));
  EXPECT_THAT(refused("--total-norm", "-1"), HasSubstr("--total-norm: must be a number >= 0"));
  for (const char* flag :
       {"--max-norm", "--epsilon", "--total-norm", "--norm-type", "--pre-scale"}) {
    EXPECT_THAT(refused(flag, "1e400"), HasSubstr(std::string(flag) + ": must be a")) << flag;
    EXPECT_THAT(refused(flag, "1e400"), HasSubstr("and 1e400 is over the largest number"));
  }
  EXPECT_THAT(refused("--timeout", "30"), HasSubstr("--timeout: must be a time over 0"));
  EXPECT_THAT(refused("--nonfinite", "ignore"),
              HasSubstr("--nonfinite: must be one of propagate, error, skip, zero, not ignore"));
  EXPECT_THAT(refused("--reply", "all"),
              HasSubstr("--reply: must be one of coefficient, gradient, if-changed, not all"));
  for (const char* uids : {"me", "-1", "1000,", "4294967295"}) {
    EXPECT_EQ(
        refused("--server-uids", uids),
        std::string("gradclip: --server-uids: must be user ids with commas between them, as in "
                    "1000,1001, not ") +
            uids + "; see gradclip clip --help");
  }
  EXPECT_THAT(Failure({"bench", "--bytes", "much"}), HasSubstr("--bytes: must be a size"));
  EXPECT_THAT(Failure({"bench", "--rounds", "0"}), HasSubstr("--rounds: must be a whole number"));
  for (const char* rounds : {"1.5", "1e3", "10000001", "-1"}) {
    EXPECT_EQ(Failure({"bench", "--rounds", rounds}),
              std::string("gradclip: --rounds: must be a whole number from 1 to 10000000, not ") +
                  rounds + "; see gradclip bench --help");
  }
  EXPECT_THAT(Failure({"bench", "--bytes", "8", "--tensors", "3"}),
              HasSubstr("--bytes=8 holds 2 F32 elements, too few for --tensors=3"));
  EXPECT_EQ(Failure({"clip", kGradient, "--max-norm"}),
            "gradclip: --max-norm needs a value; see gradclip clip --help");
}

TEST(CommandLine, SaysWhatIsMissingOrDoesNotGoTogether) {
  EXPECT_EQ(Failure({"norm"}), "gradclip: no FILE given; see gradclip norm --help");
  EXPECT_EQ(Failure({"clip", "-o", "x", "--max-norm", "1"}),
            "gradclip: no FILE given; see gradclip clip --help");
  EXPECT_EQ(Failure({"clip", kGradient, "-o", "x"}),
            "gradclip: --max-norm is missing; see gradclip clip --help");
  EXPECT_EQ(Failure({"clip", kGradient, "--max-norm", "1"}),
            "gradclip: -o is missing: where to write; see gradclip clip --help");
  const std::vector<std::string> known = {"clip",       kGradient, "-o",           "x.safetensors",
                                          "--max-norm", "1",       "--total-norm", "5"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), known.begin(), known.end());
    return Failure(more);
  };
  EXPECT_THAT(with({"--reply", "coefficient"}), HasSubstr("--reply gradient or if-changed"));
  EXPECT_THAT(with({"--per-tensor"}), HasSubstr("--per-tensor needs the norms measured"));
}

TEST(CommandLine, RefusesOutputsBeforeAnyWork) {
  const Folder folder;
  const auto refused = [&](std::vector<std::string> files, const std::string& out) {
    files.insert(files.begin(), "clip");
    files.insert(files.end(), {"--max-norm", "1", "-o", out, "--server", "127.0.0.1:1"});
    return Failure(files);
  };
  EXPECT_THAT(refused({kGradient}, folder / ""), HasSubstr("/step-060.safetensors"));
  EXPECT_THAT(refused({kGradient}, folder / "none/x.safetensors"), HasSubstr("there is no folder"));
  for (const char* name : {"x.npy", "x", "x.bin", "x.SAFETENSORS", ".safetensors"}) {
    EXPECT_EQ(refused({kGradient}, folder / name),
              "gradclip: -o " + folder / name +
                  " must end in .safetensors, for the format is kept; see gradclip clip --help");
  }
  EXPECT_THAT(refused({folder / "x.txt"}, folder / "y.txt"),
              HasSubstr("x.txt: the name must end in .safetensors or .npy"));
  ASSERT_EQ(mkfifo((folder / "pipe.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(refused({kGradient}, folder / "pipe.safetensors"),
              HasSubstr("it is no regular file"));
  EXPECT_THAT(refused({kGradient, kGradient}, folder / "out"),
              HasSubstr("two files are named step-060.safetensors"));
  WriteFile(folder / "file", "x");
  EXPECT_THAT(refused({kGradient, folder / "b.npy"}, folder / "file"),
              HasSubstr("is no folder, and 2 files need one"));
  for (const char* out : {"none/out", "none/out/"}) {
    EXPECT_EQ(refused({kGradient, folder / "b.npy"}, folder / out),
              "gradclip: can't make the folder " + folder / out + ": there is no folder " +
                  folder / "none");
  }
  EXPECT_EQ(folder.entries(), 2u);
}

TEST(Command, NamesAFileThatItCannotTake) {
  const Folder folder;
  EXPECT_EQ(Failure({"norm", folder / "none.npy"}),
            "gradclip: can't read " + folder / "none.npy" + ": No such file or directory");
  WriteFile(folder / "bad.safetensors", "text");
  EXPECT_EQ(Failure({"norm", kGradient, folder / "bad.safetensors"}),
            "gradclip: " + folder / "bad.safetensors" +
                ": the file ends after 4 bytes, within the header's length");
  WriteFile(
      folder / "ids.safetensors",
      Safetensors(R"({"a\nb":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", "12345678"));
  EXPECT_THAT(Failure({"norm", folder / "ids.safetensors"}),
              HasSubstr("tensor \"a\\x0ab\" has dtype I64, which can't be clipped"));
}

TEST(Command, SaysInOneLineThatTheServerCannotBeReached) {
  const Folder folder;
  // Nothing listens on a socket that is not there.
  const std::string nowhere = "unix:" + folder / "none.sock";
  const auto unreachable = AllOf(HasSubstr(nowhere), HasSubstr("--server"));
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"norm", kGradient},
           {"norm", kGradient, "--shared"},
           {"clip", kGradient, "--max-norm", "1", "-o", folder / "out.safetensors"},
           {"info"},
           {"health"},
           {"bench", "--bytes", "4KiB"},
           {"bench", "--bytes", "4KiB", "--shared", "--server-uids", "1,2"}}) {
    std::vector<std::string> with_server = arguments;
    with_server.insert(with_server.end(), {"--server", nowhere, "--timeout", "10s"});
    EXPECT_THAT(Failure(with_server), unreachable) << arguments[0];
  }
  EXPECT_EQ(folder.entries(), 0u);
}

TEST(Command, TakesTheServerFromTheEnvironmentAndTheFlagWins) {
  EXPECT_THAT(Failure({"health", "--timeout", "10s"}, {"GRADCLIP_SERVER=unix:/no/a.sock"}),
              HasSubstr("unix:/no/a.sock"));
  EXPECT_THAT(Failure({"health", "--timeout", "10s", "--server", "unix:/no/b.sock"},
                      {"GRADCLIP_SERVER=unix:/no/a.sock"}),
              HasSubstr("unix:/no/b.sock"));
}

}  // namespace
}  // namespace gradclip
