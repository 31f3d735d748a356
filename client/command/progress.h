// One line on a terminal that shows how far a long transfer is. It appears after a second, is drawn
// ten times a second at most and is erased at the end. Belongs to one thread.
#ifndef GRADCLIP_CLIENT_COMMAND_PROGRESS_H_
#define GRADCLIP_CLIENT_COMMAND_PROGRESS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace gradclip {

class Progress {
 public:
  using Clock = std::function<absl::Time()>;
  using Width = std::function<size_t()>;  // in columns; 0 where it is not known

  // Time runs from here. `terminal` outlives this; null where nothing is to be shown. A line is cut
  // to `width`: one that wraps could not be erased.
  explicit Progress(std::ostream* terminal, Clock now = absl::Now, Width width = TerminalWidth);

  // Of the terminal on standard error.
  static size_t TerminalWidth();

  // `done` of `total` bytes are through.
  void Update(uint64_t done, uint64_t total);

  // Erases the line where there is one.
  void Finish();

  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  std::ostream* const terminal_;
  const Clock now_;
  const Width width_;
  const absl::Time start_;
  absl::Time next_;  // when it is drawn again
  bool drawn_ = false;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_COMMAND_PROGRESS_H_
