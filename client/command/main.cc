#include <csignal>
#include <cstdlib>

#include "client/command/command_line.h"
#include "client/command/interrupt.h"

int main(int argc, char** argv) {
  gradclip::RemoveStagedFilesOnSignals();
  // A file over the system's limit (ulimit -f) is then an error of writing, as a full disk is.
  std::signal(SIGXFSZ, SIG_IGN);
  // gRPC's own log lines would break the one line that an error is reported with.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return gradclip::RunCommandLine(argc, argv);
}
