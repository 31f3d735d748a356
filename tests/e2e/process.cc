#include "tests/e2e/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>

namespace gradclip {

Process::Process(const std::string& program, std::vector<std::string> arguments,
                 const std::vector<std::string>& environment) {
  std::array<int, 2> out{};
  std::array<int, 2> err{};
  if (pipe2(out.data(), O_CLOEXEC) != 0 || pipe2(err.data(), O_CLOEXEC) != 0) std::abort();
  std::string path = std::string(GRADCLIP_BIN_DIR) + "/" + program;
  if (access(path.c_str(), X_OK) != 0) path = program;
  arguments.insert(arguments.begin(), path);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<std::string> variables = environment;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);

  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    execvpe(path.c_str(), argv.data(), envp.data());
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  out_pipe_ = out[0];
  err_pipe_ = err[0];
}

Process::~Process() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(out_pipe_);
  close(err_pipe_);
}

std::string Process::ReadLine() {
  std::string line;
  char byte = 0;
  while (read(out_pipe_, &byte, 1) == 1 && byte != '\n') line.push_back(byte);
  return line;
}

void Process::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

int Process::Wait() {
  std::array<pollfd, 2> pipes = {pollfd{out_pipe_, POLLIN, 0}, pollfd{err_pipe_, POLLIN, 0}};
  std::array<std::string*, 2> texts = {&out_, &err_};
  for (int open = 2; open > 0;) {
    poll(pipes.data(), pipes.size(), -1);
    for (size_t i = 0; i < pipes.size(); ++i) {
      if (pipes[i].revents == 0) continue;
      std::array<char, 4096> buffer;
      const ssize_t bytes = read(pipes[i].fd, buffer.data(), buffer.size());
      if (bytes > 0) {
        texts[i]->append(buffer.data(), bytes);
      } else {
        pipes[i].fd = -1;  // poll() leaves it alone
        pipes[i].revents = 0;
        --open;
      }
    }
  }
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

ServerProcess::ServerProcess(std::vector<std::string> arguments,
                             const std::vector<std::string>& environment,
                             const std::string& program)
    : process_(
          program,
          [&] {
            arguments.insert(arguments.begin(), "--listen=127.0.0.1:0");
            return arguments;
          }(),
          environment) {
  const std::string line = process_.ReadLine();
  const std::string prefix = "listening on ";
  if (line.rfind(prefix, 0) == 0) address_ = line.substr(prefix.size());
}

std::string ServerProcess::ReadMetricsAddress() {
  const std::string line = process_.ReadLine();
  const std::string prefix = "metrics on http://";
  if (line.rfind(prefix, 0) != 0) return "";
  return line.substr(prefix.size(), line.rfind("/metrics") - prefix.size());
}

}  // namespace gradclip
