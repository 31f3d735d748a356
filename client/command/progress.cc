#include "client/command/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/command/output.h"

namespace gradclip {
namespace {

constexpr size_t kBarWidth = 20;
constexpr const char* kEraseLine = "\r\x1b[K";

}  // namespace

Progress::Progress(std::ostream* terminal, Clock now, Width width)
    : terminal_(terminal),
      now_(std::move(now)),
      width_(std::move(width)),
      start_(now_()),
      next_(start_ + absl::Seconds(1)) {}

size_t Progress::TerminalWidth() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

void Progress::Update(uint64_t done, uint64_t total) {
  if (terminal_ == nullptr || total == 0) return;
  const absl::Time now = now_();
  if (now < next_) return;
  next_ = now + absl::Milliseconds(100);

  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  std::string remaining = "?";
  if (done > 0) {
    const absl::Duration left = (now - start_) * ((1 - share) / share);
    remaining = absl::FormatDuration(absl::Ceil(left, absl::Seconds(1)));
  }
  const auto filled = static_cast<size_t>(share * kBarWidth);
  std::string line =
      absl::StrFormat("%3d%% [%s%s] %s of %s, %s, %s left", static_cast<int>(share * 100),
                      std::string(filled, '#'), std::string(kBarWidth - filled, ' '),
                      BytesText(done), BytesText(total), RateText(done, now - start_), remaining);
  // Some terminals wrap as soon as the last column is written.
  if (const size_t width = width_(); width > 0) line.resize(std::min(line.size(), width - 1));
  *terminal_ << kEraseLine << line << std::flush;
  drawn_ = true;
}

void Progress::Finish() {
  if (drawn_) *terminal_ << kEraseLine << std::flush;
  drawn_ = false;
}

}  // namespace gradclip
