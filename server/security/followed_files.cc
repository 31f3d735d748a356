#include "server/security/followed_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace gradclip {
namespace {

constexpr std::chrono::seconds kBetweenLooks{1};

// A file of more is a mistake; of one that is something else, no more is read.
constexpr size_t kMostFileBytes = size_t{1} << 20;

}  // namespace

FollowedFiles::FollowedFiles(std::string what, std::vector<std::string> paths, Take take, Log& log)
    : what_(std::move(what)),
      paths_(std::move(paths)),
      take_(std::move(take)),
      log_(log),
      seen_(Stamp()) {}

absl::StatusOr<std::unique_ptr<FollowedFiles>> FollowedFiles::Follow(std::string what,
                                                                     std::vector<std::string> paths,
                                                                     Take take, Log& log) {
  // The stamp comes first: what changes while the files are read is seen.
  std::unique_ptr<FollowedFiles> followed(
      new FollowedFiles(std::move(what), std::move(paths), std::move(take), log));
  const absl::StatusOr<absl::Time> taken = followed->take_();
  if (!taken.ok()) return taken.status();
  followed->good_until_ = *taken;
  followed->thread_ = std::thread([files = followed.get()] { files->Watch(); });
  return followed;
}

FollowedFiles::~FollowedFiles() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void FollowedFiles::Watch() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kBetweenLooks, [this] { return stop_; })) {
    lock.unlock();
    LookAgain();
    lock.lock();
  }
}

void FollowedFiles::LookAgain() {
  std::string stamp = Stamp();
  if (stamp == seen_ && complaint_.empty() && absl::Now() < good_until_) return;
  seen_ = std::move(stamp);
  const absl::StatusOr<absl::Time> taken = take_();
  if (taken.ok()) good_until_ = *taken;
  const std::string complaint(taken.status().message());
  if (!taken.ok() && complaint != complaint_) {
    log_.Warning(absl::StrCat(what_, " not renewed; what is in use stays"),
                 {{"reason", complaint}});
  }
  complaint_ = complaint;
}

std::string FollowedFiles::Stamp() const {
  std::string stamp;
  for (const std::string& path : paths_) {
    struct stat file {};
    if (stat(path.c_str(), &file) != 0) file = {};
    absl::StrAppend(&stamp, file.st_dev, " ", file.st_ino, " ", file.st_size);
    for (const timespec& time : {file.st_mtim, file.st_ctim}) {
      absl::StrAppend(&stamp, " ", time.tv_sec, ".", time.tv_nsec);
    }
    stamp += '\n';
  }
  return stamp;
}

absl::Status RefuseFlagFile(absl::string_view flag, const std::string& path,
                            absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, ": ", why));
}

absl::StatusOr<std::string> ReadFlagFile(absl::string_view flag, const std::string& path) {
  const auto unreadable = [&](int error) {
    return RefuseFlagFile(flag, path, absl::StrCat("can't be read: ", std::strerror(error)));
  };
  // A pipe would be waited for, and could not be read a second time.
  const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return unreadable(errno);
  const absl::Cleanup close_it = [file] { close(file); };
  struct stat status {};
  if (fstat(file, &status) != 0) return unreadable(errno);
  if (!S_ISREG(status.st_mode)) return RefuseFlagFile(flag, path, "is no regular file");
  std::string text(kMostFileBytes + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = read(file, text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return unreadable(errno);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMostFileBytes) return RefuseFlagFile(flag, path, "has more than 1 MiB");
  text.resize(size);
  return text;
}

}  // namespace gradclip
