// A file that is written whole or not at all: first under a temporary name in the folder of its
// path, then, once its bytes are on the disk, renamed to it. Each object belongs to one thread;
// RemoveStagedFiles() may be called from any.
#ifndef GRADCLIP_CLIENT_FILES_STAGED_FILE_H_
#define GRADCLIP_CLIENT_FILES_STAGED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradclip {

class StagedFile {
 public:
  // Whether Create(path) may succeed: path is a regular file or does not exist, and its folder
  // exists. For refusing before long work.
  static absl::Status Check(const std::string& path);

  // Called on the writing thread every few MiB, and at the end, with how many bytes are written.
  using Written = std::function<void(uint64_t bytes)>;

  // Writes the bytes under a temporary name and syncs them. A new file gets the mode that umask
  // leaves, one that is replaced keeps its own; a symbolic link is followed, not replaced.
  static absl::StatusOr<StagedFile> Create(const std::string& path,
                                           std::span<const std::byte> bytes,
                                           const Written& written = nullptr);

  // Renames all to their paths. Where one can't be, the error names it; those before it are
  // in place and the rest are dropped.
  static absl::Status CommitAll(std::span<StagedFile> files);

  absl::Status Commit() { return CommitAll({this, 1}); }

  // Removes the temporary file where it was not committed.
  ~StagedFile();
  StagedFile(StagedFile&& other) noexcept;
  StagedFile& operator=(StagedFile&&) = delete;

 private:
  StagedFile(std::string path, std::string temporary)
      : path_(std::move(path)), temporary_(std::move(temporary)) {}

  std::string path_;
  std::string temporary_;  // empty once committed or moved from
};

// For a process about to be ended by a signal: removes every temporary file of this process, and
// keeps others from being made or committed from then on by blocking the threads that try. It is
// no signal handler: call it from a thread that waits for the signal.
void RemoveStagedFiles();

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_FILES_STAGED_FILE_H_
