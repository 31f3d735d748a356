// Programs of the build as a user runs them: a server as a child process, commands with their
// output.
#ifndef GRADCLIP_TESTS_E2E_PROCESS_H_
#define GRADCLIP_TESTS_E2E_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace gradclip {

// A child process with its standard output and error in pipes. It is killed when the thread that
// started it ends. Not thread-safe.
class Process {
 public:
  // `program` is a name in the build's bin folder, or else one that the shell finds. `environment`:
  // NAME=value, beside the present one.
  Process(const std::string& program, std::vector<std::string> arguments,
          const std::vector<std::string>& environment = {});
  ~Process();  // kills it where it still runs

  // The next line of standard output, without its end; empty at the end of the output.
  std::string ReadLine();
  void Signal(int signal);
  // Reads both outputs to their end and waits. Returns the exit status, or 128 + the signal.
  int Wait();

  const std::string& out() const { return out_; }  // what Wait() read of standard output
  const std::string& err() const { return err_; }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  int out_pipe_ = -1;
  int err_pipe_ = -1;
  std::string out_;
  std::string err_;
};

// A gradclip-server on a free port, stopped with the object.
class ServerProcess {
 public:
  explicit ServerProcess(std::vector<std::string> arguments = {},
                         const std::vector<std::string>& environment = {},
                         const std::string& program = "gradclip-server");

  const std::string& address() const { return address_; }
  // "127.0.0.1:9090", with --metrics-listen among the arguments; else it never returns.
  std::string ReadMetricsAddress();
  Process& process() { return process_; }

 private:
  Process process_;
  std::string address_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_E2E_PROCESS_H_
