// The command on a terminal.
#include <gmock/gmock.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "tests/e2e/command_fixture.h"

namespace gradclip {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

// The command with a terminal as its standard input, output and error; of an unknown width where
// `columns` is 0. Not thread-safe.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> arguments, unsigned short columns = 0) {
    const std::string path = GRADCLIP_BIN_DIR "/gradclip";
    arguments.insert(arguments.begin(), path);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    setenv("TERM", "xterm", 1);
    winsize size = {};
    size.ws_col = columns;
    pid_ = forkpty(&terminal_, nullptr, nullptr, columns > 0 ? &size : nullptr);
    if (pid_ < 0) {
      std::perror("this system gives no terminal (is /dev/pts mounted?)");
      std::abort();
    }
    if (pid_ == 0) {
      execv(path.c_str(), argv.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(terminal_);
  }

  // Reads until `text` has come; false where the command ends first.
  bool ReadUntil(const std::string& text) {
    while (shown_.find(text) == std::string::npos) {
      if (!ReadSome()) return false;
    }
    return true;
  }

  // As Process::Wait().
  int Wait() {
    while (ReadSome()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  void Type(char key) {
    if (write(terminal_, &key, 1) != 1) ADD_FAILURE() << "the terminal takes no key";
  }

  const std::string& shown() const { return shown_; }

 private:
  bool ReadSome() {
    char buffer[4096];
    const ssize_t bytes = read(terminal_, buffer, sizeof(buffer));
    if (bytes > 0) shown_.append(buffer, static_cast<size_t>(bytes));
    return bytes > 0;
  }

  pid_t pid_ = -1;
  int terminal_ = -1;
  std::string shown_;
};

constexpr char kEraseLine[] = "\r\x1b[K";
constexpr char kControlC = 3;

TEST_F(Command, ShowsRateAndRemainingTimeOfLongWorkOnATerminalAndErasesThem) {
  const auto arguments = WithServer({"bench", "--bytes", "16MiB", "--rounds", "1000000"});
  Terminal terminal(arguments);
  ASSERT_TRUE(terminal.ReadUntil(" left")) << terminal.shown();
  EXPECT_THAT(terminal.shown(),
              testing::ContainsRegex("0% \\[ +\\] [0-9.]+ .iB of 15.3 TiB, [0-9.]+ .B/s, .+ left"));
  terminal.Type(kControlC);
  EXPECT_EQ(terminal.Wait(), 128 + SIGINT);
  EXPECT_THAT(terminal.shown(), EndsWith(kEraseLine));
}

TEST_F(Command, CutsItsProgressToTheTerminal) {
  Terminal terminal(WithServer({"bench", "--bytes", "16MiB", "--rounds", "1000000"}),
                    /*columns=*/12);
  ASSERT_TRUE(terminal.ReadUntil("[     ")) << terminal.shown();
  terminal.Type(kControlC);
  EXPECT_EQ(terminal.Wait(), 128 + SIGINT);
  EXPECT_THAT(terminal.shown(), Not(HasSubstr("B of")));
  EXPECT_THAT(terminal.shown(), Not(HasSubstr("[      ")));  // six blanks, the twelfth column
}

TEST_F(Command, IsQuietOnATerminalWhereToldTo) {
  // Long enough for a bar: it is killed when the same work has shown one elsewhere.
  Terminal quiet(WithServer({"bench", "--bytes", "16MiB", "--rounds", "1000000", "-q"}));
  Terminal other(WithServer({"bench", "--bytes", "16MiB", "--rounds", "1000000"}));
  ASSERT_TRUE(other.ReadUntil(" left")) << other.shown();
  quiet.Type(kControlC);
  EXPECT_EQ(quiet.Wait(), 128 + SIGINT);
  EXPECT_THAT(quiet.shown(), Not(HasSubstr("left")));
}

TEST_F(Command, FailsInOneLineOnATerminalToo) {
  Terminal terminal({"norm", Out("none.npy")});
  EXPECT_EQ(terminal.Wait(), 1);
  EXPECT_EQ(terminal.shown(),
            "gradclip: can't read " + Out("none.npy") + ": No such file or directory\r\n");
}

}  // namespace
}  // namespace gradclip
