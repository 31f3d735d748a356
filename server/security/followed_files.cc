#include "server/security/followed_files.h"

#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

constexpr std::chrono::seconds kBetweenLooks{1};

// A file of more is a mistake; of one that is something else, no more is read.
constexpr size_t kMostFileBytes = size_t{1} << 20;

}  // namespace

FollowedFiles::FollowedFiles(std::string what, std::vector<std::string> paths,
                             std::function<absl::Status()> take, Log& log)
    : what_(std::move(what)),
      paths_(std::move(paths)),
      take_(std::move(take)),
      log_(log),
      seen_(Stamp()) {}

absl::StatusOr<std::unique_ptr<FollowedFiles>> FollowedFiles::Follow(
    std::string what, std::vector<std::string> paths, std::function<absl::Status()> take,
    Log& log) {
  // The stamp comes first: what changes while the files are read is seen.
  std::unique_ptr<FollowedFiles> followed(
      new FollowedFiles(std::move(what), std::move(paths), std::move(take), log));
  if (absl::Status taken = followed->take_(); !taken.ok()) return taken;
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
  if (stamp == seen_ && complaint_.empty()) return;
  seen_ = std::move(stamp);
  const absl::Status taken = take_();
  const std::string complaint(taken.message());
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
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file.is_open()) {
    text.resize(kMostFileBytes + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    return RefuseFlagFile(flag, path, absl::StrCat("can't be read: ", std::strerror(errno)));
  }
  if (text.size() > kMostFileBytes) return RefuseFlagFile(flag, path, "has more than 1 MiB");
  return text;
}

}  // namespace gradclip
