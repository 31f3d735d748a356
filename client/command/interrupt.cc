#include "client/command/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <thread>

#include "client/files/staged_file.h"

namespace gradclip {

void RemoveStagedFilesOnSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    if (action.sa_handler != SIG_IGN) sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals] {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) return;
    RemoveStagedFiles();
    // A progress bar may be in the line.
    constexpr char kEraseLine[] = "\r\x1b[K";
    if (isatty(STDERR_FILENO) && write(STDERR_FILENO, kEraseLine, sizeof(kEraseLine) - 1) < 0) {
      // The terminal is gone; so will the process be.
    }
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    raise(signal);  // its default action, which ends the process
  }).detach();
}

}  // namespace gradclip
