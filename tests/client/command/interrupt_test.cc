#include "client/command/interrupt.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

#include "client/files/staged_file.h"
#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

// In a process of its own: a half-written file, then the signal.
void WriteHalfAndRaise(const std::string& path, int signal) {
  RemoveStagedFilesOnSignals();
  const absl::StatusOr<StagedFile> staged = StagedFile::Create(path, AsBytes("half"));
  if (!staged.ok()) _exit(1);
  kill(getpid(), signal);
  while (true) pause();
}

TEST(InterruptDeathTest, LeavesNoHalfWrittenFileAndEndsAsTheSignalDoes) {
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const Folder folder;
    EXPECT_EXIT(WriteHalfAndRaise(folder / "out.npy", signal), ::testing::KilledBySignal(signal),
                "");
    EXPECT_EQ(folder.entries(), 0u);
  }
}

TEST(InterruptDeathTest, LeavesSignalsIgnoredThatTheProcessWasStartedToIgnore) {
  const auto ignored_hangup = [] {
    signal(SIGHUP, SIG_IGN);
    RemoveStagedFilesOnSignals();
    kill(getpid(), SIGHUP);
    kill(getpid(), SIGTERM);
    while (true) pause();
  };
  EXPECT_EXIT(ignored_hangup(), ::testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace gradclip
