// gradclip-server: reads its options, serves, and drains on SIGTERM or SIGINT.
#include <grpc/grpc.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#if __has_include(<google/protobuf/stubs/logging.h>)  // before protobuf 22
#include <google/protobuf/stubs/logging.h>
#endif

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/memory/heap.h"
#include "server/observe/log.h"
#include "server/options/options.h"
#include "server/rpc/server.h"

namespace {

using gradclip::Log;
using gradclip::Options;
using gradclip::Server;

// The signals that ask the server to stop. Blocked in every thread, so that only sigwait() sees
// them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

int Fail(const absl::Status& status) {
  std::cerr << "gradclip-server: " << status.message() << std::endl;
  return 1;
}

// What libraries would write to standard error would stand between the lines of the log, as many as
// clients care to provoke; the log has a line for every call that fails.
void SilenceLibraries() {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
#if __has_include(<google/protobuf/stubs/logging.h>)
  google::protobuf::SetLogHandler(nullptr);
#endif
}

// A connection and a region take a descriptor each, and programs are started with a limit of 1024
// for the sake of select(). Says so where there are too few all the same.
void AllowManyDescriptors(const Options& options, Log& log) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  constexpr uint64_t kForTheRest = 64;
  const uint64_t needed = options.max_connections + options.max_regions + kForTheRest;
  if (limit.rlim_max >= needed) return;
  log.Warning("fewer files may be open than connections and regions need (ulimit -Hn)",
              {{"may", uint64_t{limit.rlim_max}}, {"needed", needed}});
}

// From here on a stop signal ends the process at once.
void ExitOnNextSignal(const sigset_t& signals) {
  struct sigaction exit_at_once = {};
  exit_at_once.sa_handler = [](int) { _exit(1); };
  sigaction(SIGTERM, &exit_at_once, nullptr);
  sigaction(SIGINT, &exit_at_once, nullptr);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  SilenceLibraries();
  const absl::StatusOr<Options> options = gradclip::ParseOptions(argc, argv);
  if (!options.ok()) return Fail(options.status());
  if (options->print_and_exit.has_value()) {
    std::cout << *options->print_and_exit;
    return 0;
  }
  gradclip::KeepHeap();
  // Debian builds Abseil, and so gRPC, to look for lock cycles at every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const sigset_t signals = BlockStopSignals();
  // Never given back: gRPC's last shutdown may wait ten seconds for a poller of its own.
  grpc_init();

  Log log(options->log_format, options->log_level);
  for (const std::string& warning : options->warnings) log.Warning(warning);
  AllowManyDescriptors(*options, log);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(*options, log);
  if (!server.ok()) return Fail(server.status());
  for (const std::string& address : (*server)->addresses()) {
    std::cout << "listening on " << address << std::endl;
  }
  if (const std::string& address = (*server)->metrics_address(); !address.empty()) {
    std::cout << "metrics on http://" << address << "/metrics" << std::endl;
  }

  int signal = 0;
  sigwait(&signals, &signal);
  log.Info("draining: new calls are refused, running ones may end",
           {{"signal", signal}, {"timeout", absl::FormatDuration(options->drain_timeout)}});
  ExitOnNextSignal(signals);
  (*server)->Drain(options->drain_timeout);
  server->reset();
  log.Info("stopped");
  return 0;
}
