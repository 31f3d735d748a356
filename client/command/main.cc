#include <cstdlib>

#include "client/command/command_line.h"
#include "client/command/interrupt.h"

int main(int argc, char** argv) {
  gradclip::RemoveStagedFilesOnSignals();
  // gRPC's own log lines would break the one line that an error is reported with.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return gradclip::RunCommandLine(argc, argv);
}
