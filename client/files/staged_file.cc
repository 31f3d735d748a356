#include "client/files/staged_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// The temporary files of this process. A set of the whole process, because so are the signals that
// end it. Held for each name's making and renaming, never while bytes are written.
constinit std::mutex g_mutex;

// REQUIRES: g_mutex is held.
std::set<std::string>& Temporaries() {
  static auto* const temporaries = new std::set<std::string>;
  return *temporaries;
}

absl::Status Failed(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("can't write ", path));
}

// The path that a rename must go to for `path` to stay a symbolic link where it is one. What the
// link leads to need not be there yet.
std::string FollowLink(std::filesystem::path path) {
  constexpr int kMaxLinks = 40;  // as the system's own
  std::error_code error;
  for (int links = 0; links < kMaxLinks; ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) break;
    path = path.parent_path() / target;
  }
  return path.string();
}

std::string FolderOf(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

// Makes an empty file beside `path` under a name that is not taken and returns its descriptor, or
// -1 and errno.
int MakeTemporary(const std::string& path, std::string& name) {
  const std::filesystem::path whole(path);
  std::random_device random;
  // A clash among 2^64 names is no chance, so a second one means that the folder lies.
  for (int tries = 0; tries < 2; ++tries) {
    const uint64_t tag = (uint64_t{random()} << 32) | random();
    name = absl::StrCat(FolderOf(path), "/.", whole.filename().string().substr(0, 200), ".",
                        absl::Hex(tag, absl::kZeroPad16), ".tmp");
    std::lock_guard lock(g_mutex);
    const int file = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) Temporaries().insert(name);
    if (file >= 0 || errno != EEXIST) return file;
  }
  return -1;
}

void Remove(const std::string& temporary) {
  std::lock_guard lock(g_mutex);
  Temporaries().erase(temporary);
  unlink(temporary.c_str());
}

bool WriteAll(int file, std::span<const std::byte> bytes, const StagedFile::Written& report) {
  constexpr size_t kMaxWrite = size_t{8} << 20;  // some milliseconds
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t written = write(file, &bytes[at], std::min(bytes.size() - at, kMaxWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    at += static_cast<size_t>(written);
    if (report) report(at);
  }
  return true;
}

// The new name is on the disk once its folder is. Some file systems can't sync a folder; the file
// itself is whole there too, so that is no error.
void SyncFolder(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);
  close(descriptor);
}

}  // namespace

absl::Status StagedFile::Check(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("the output path is empty");
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) {
    if (S_ISREG(info.st_mode)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "can't write ", path, ": it is ", S_ISDIR(info.st_mode) ? "a folder" : "no regular file"));
  }
  if (errno != ENOENT) return Failed(path);
  const std::string folder = FolderOf(FollowLink(path));
  if (stat(folder.c_str(), &info) != 0) {
    if (errno != ENOENT) return Failed(path);
    return absl::NotFoundError(absl::StrCat("can't write ", path, ": there is no folder ", folder));
  }
  if (std::filesystem::path(path).filename().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("can't write ", path, ": it is a folder"));
  }
  return absl::OkStatus();
}

absl::StatusOr<StagedFile> StagedFile::Create(const std::string& path,
                                              std::span<const std::byte> bytes,
                                              const Written& written) {
  if (absl::Status status = Check(path); !status.ok()) return status;
  const std::string target = FollowLink(path);
  std::string temporary;
  const int file = MakeTemporary(target, temporary);
  if (file < 0) return Failed(path);
  StagedFile staged(target, temporary);  // removes the file on every way out but the last

  struct stat replaced {};
  bool whole = WriteAll(file, bytes, written);
  if (whole && stat(target.c_str(), &replaced) == 0) {
    whole = fchmod(file, replaced.st_mode & 07777) == 0;
  }
  whole = whole && fsync(file) == 0;
  const int error = errno;
  if (close(file) != 0 && whole) return Failed(path);
  errno = error;
  if (!whole) return Failed(path);
  return staged;
}

absl::Status StagedFile::CommitAll(std::span<StagedFile> files) {
  std::set<std::string> folders;
  {
    // One lock over all, so that a signal finds all of them renamed or none.
    std::lock_guard lock(g_mutex);
    for (StagedFile& file : files) {
      if (rename(file.temporary_.c_str(), file.path_.c_str()) != 0) return Failed(file.path_);
      Temporaries().erase(file.temporary_);
      file.temporary_.clear();
      folders.insert(FolderOf(file.path_));
    }
  }
  for (const std::string& folder : folders) SyncFolder(folder);
  return absl::OkStatus();
}

StagedFile::~StagedFile() {
  if (!temporary_.empty()) Remove(temporary_);
}

StagedFile::StagedFile(StagedFile&& other) noexcept
    : path_(std::move(other.path_)), temporary_(std::exchange(other.temporary_, {})) {}

void RemoveStagedFiles() {
  g_mutex.lock();  // and never unlocks
  for (const std::string& temporary : Temporaries()) unlink(temporary.c_str());
}

}  // namespace gradclip
