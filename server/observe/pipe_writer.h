// Writes lines to a file descriptor without ever being stuck for good behind a reader that has
// stopped. Write() is for one thread; Close() may come from another.
#ifndef GRADCLIP_SERVER_OBSERVE_PIPE_WRITER_H_
#define GRADCLIP_SERVER_OBSERVE_PIPE_WRITER_H_

#include <atomic>
#include <string_view>

namespace gradclip {

class PipeWriter {
 public:
  // `file_descriptor` stays the caller's and may be of any kind.
  explicit PipeWriter(int file_descriptor) : file_descriptor_(file_descriptor) {}

  // Waits for room as long as it takes before Close(); after it for at most a second in all. Where
  // the file is broken or that second is over, does nothing.
  void Write(std::string_view line);

  void Close() { closing_ = true; }

 private:
  // False: give up.
  bool WaitForRoom();

  const int file_descriptor_;
  std::atomic<bool> closing_ = false;
  int closing_waits_ = 0;  // polls without room since Close()
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_PIPE_WRITER_H_
