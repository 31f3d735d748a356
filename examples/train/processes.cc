#include "examples/train/processes.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "examples/train/shared_array.h"

namespace train {
namespace {

// What a process says before it fails, cut to its room; zeroes follow.
using LastWords = std::array<char, 1024>;

[[noreturn]] void RunChild(pid_t parent, size_t rank, LastWords& last_words,
                           const std::function<absl::Status(size_t rank)>& work) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it ended before that was set
  const absl::Status status = work(rank);
  const std::string text = status.ok() ? "" : status.ToString();
  std::copy_n(text.begin(), std::min(text.size(), last_words.size() - 1), last_words.begin());
  _exit(status.ok() ? 0 : 1);
}

// How a process ended, where it did not end well.
absl::Status Ended(size_t rank, int status, const LastWords& last_words) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  const std::string how =
      WIFSIGNALED(status)       ? absl::StrCat("was killed by signal ", WTERMSIG(status))
      : last_words.front() == 0 ? absl::StrCat("ended with status ", WEXITSTATUS(status))
                                : absl::StrCat("failed: ", last_words.data());
  return absl::AbortedError(absl::StrCat("rank ", rank, " ", how));
}

}  // namespace

absl::Status RunProcesses(size_t count, const std::function<absl::Status(size_t rank)>& work) {
  const SharedArray<LastWords> last_words(count);
  const pid_t parent = getpid();
  std::vector<pid_t> running(count, -1);
  absl::Status result;
  for (size_t rank = 0; rank < count && result.ok(); ++rank) {
    running[rank] = fork();
    if (running[rank] == 0) RunChild(parent, rank, last_words[rank], work);
    if (running[rank] < 0) result = absl::ErrnoToStatus(errno, "cannot fork");
    // A process group of their own tells them from other children. It has the first one's number.
    setpgid(running[rank], running[0]);
  }
  const pid_t group = running[0];
  const auto kill_all = [&] {
    if (group > 0) kill(-group, SIGKILL);
  };
  if (!result.ok()) kill_all();
  int status = 0;
  for (pid_t ended; group > 0 && (ended = waitpid(-group, &status, 0)) > 0;) {
    if (!result.ok()) continue;  // killed as another one failed
    const size_t rank = std::find(running.begin(), running.end(), ended) - running.begin();
    result = Ended(rank, status, last_words[rank]);
    if (!result.ok()) kill_all();
  }
  return result;
}

}  // namespace train
