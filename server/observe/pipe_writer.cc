#include "server/observe/pipe_writer.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace gradclip {
namespace {

constexpr int kWaitMilliseconds = 50;  // hence also how late a Close() is noticed
constexpr int kClosingWaits = 1000 / kWaitMilliseconds;

}  // namespace

void PipeWriter::Write(std::string_view line) {
  while (!line.empty()) {
    if (!WaitForRoom()) return;
    // A pipe with any room takes this much without blocking.
    const size_t count = std::min<size_t>(line.size(), PIPE_BUF);
    const ssize_t written = write(file_descriptor_, line.data(), count);
    if (written < 0 && errno != EINTR && errno != EAGAIN) return;
    if (written > 0) line.remove_prefix(static_cast<size_t>(written));
  }
}

bool PipeWriter::WaitForRoom() {
  pollfd poll_for = {file_descriptor_, POLLOUT, 0};
  for (;;) {
    if (closing_ && closing_waits_ >= kClosingWaits) return false;
    const int ready = poll(&poll_for, 1, kWaitMilliseconds);
    if (ready > 0) return true;  // room, or an error that write() will tell
    if (ready < 0 && errno != EINTR) return false;
    if (closing_) ++closing_waits_;
  }
}

}  // namespace gradclip
