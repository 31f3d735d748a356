#include "tests/bench/child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace gradclip::bench {
namespace {

std::string LastLine(const std::string& path) {
  std::ifstream file(path);
  std::string last = "(nothing)";
  for (std::string line; std::getline(file, line);) last = line;
  return last;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Child>> Child::Start(const std::string& program,
                                                    const std::vector<std::string>& arguments,
                                                    const std::string& errors) {
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  int in[2];
  int out[2];
  if (pipe2(in, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  if (pipe2(out, O_CLOEXEC) != 0) {
    close(in[0]);
    close(in[1]);
    return absl::ErrnoToStatus(errno, "pipe2");
  }
  const int log = open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const pid_t pid = log < 0 ? -1 : fork();
  if (pid == 0) {
    // Only what is safe after fork() in a program with threads.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(program.c_str(), argv.data());
    _exit(127);
  }
  const int error = errno;
  if (log >= 0) close(log);
  close(in[0]);
  close(out[1]);
  if (pid < 0) {
    close(in[1]);
    close(out[0]);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", program));
  }
  return std::unique_ptr<Child>(new Child(program, errors, pid, in[1], out[0]));
}

Child::Child(std::string program, std::string errors, pid_t pid, int in, int out)
    : program_(std::move(program)),
      errors_(std::move(errors)),
      pid_(pid),
      in_(fdopen(in, "w"), &fclose),
      out_(fdopen(out, "r"), &fclose) {}

Child::~Child() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

absl::StatusOr<std::string> Child::ReadLine() {
  char* line = nullptr;
  size_t capacity = 0;
  const absl::Cleanup free_line = [&] { std::free(line); };
  const ssize_t length = getline(&line, &capacity, out_.get());
  if (length <= 0) {
    return absl::UnavailableError(
        absl::StrCat(program_, " has ended; its last words: ", LastLine(errors_)));
  }
  std::string text(line, static_cast<size_t>(length));
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

absl::Status Child::WriteLine(const std::string& line) {
  if (std::fprintf(in_.get(), "%s\n", line.c_str()) < 0 || std::fflush(in_.get()) != 0) {
    return absl::UnavailableError(
        absl::StrCat(program_, " has ended; its last words: ", LastLine(errors_)));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Child::MemoryBytes(const std::string& field) const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/status"));
  for (std::string name; file >> name; std::getline(file, name)) {
    uint64_t kilobytes = 0;
    if (name == field + ":" && file >> kilobytes) return kilobytes * 1024;
  }
  return absl::UnavailableError(
      absl::StrCat("/proc/", pid_, "/status of ", program_, " has no ", field));
}

absl::StatusOr<double> Child::CpuSeconds() const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/stat"));
  std::string skipped;
  std::getline(file, skipped, ')');  // the program's name may have blanks
  for (int i = 3; i < 14; ++i) file >> skipped;
  uint64_t user = 0;
  uint64_t system = 0;
  if (file >> user >> system) {
    return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  return absl::UnavailableError(
      absl::StrCat("/proc/", pid_, "/stat of ", program_, " has no times"));
}

}  // namespace gradclip::bench
