#include "server/shm/region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

// Newer than some systems' headers.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace gradclip {
namespace {

// With these no page within the length can ever go away, which SIGBUS would tell.
constexpr std::pair<int, const char*> kNeededSeals[] = {
    {F_SEAL_SHRINK, "F_SEAL_SHRINK"}, {F_SEAL_GROW, "F_SEAL_GROW"}, {F_SEAL_SEAL, "F_SEAL_SEAL"}};
constexpr int kWriteSeals = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

// The seals of `memfd`, where it is one on ordinary pages.
absl::StatusOr<int> GetSeals(int memfd) {
  const int seals = fcntl(memfd, F_GET_SEALS);
  if (seals < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the descriptor is no memfd (", strerror(errno),
                     "): make one with memfd_create and MFD_ALLOW_SEALING"));
  }
  struct statfs system = {};
  if (fstatfs(memfd, &system) != 0 || system.f_type == HUGETLBFS_MAGIC) {
    return absl::InvalidArgumentError(
        "the memfd is on huge pages set aside by hand (MFD_HUGETLB), which are not taken: make it "
        "without; it gets transparent huge pages where the system's shmem_enabled allows them");
  }
  return seals;
}

}  // namespace

absl::Status Region::Check(int memfd, uint64_t length, bool read_only) {
  const absl::StatusOr<int> seals = GetSeals(memfd);
  if (!seals.ok()) return seals.status();
  std::vector<const char*> missing;
  for (const auto& [seal, name] : kNeededSeals) {
    if ((*seals & seal) == 0) missing.push_back(name);
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the memfd lacks ", absl::StrJoin(missing, ", "),
        ": once it has its size, add F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL with F_ADD_SEALS"));
  }
  struct stat file = {};
  if (fstat(memfd, &file) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the memfd has no size: ", strerror(errno)));
  }
  if (length == 0 || length != static_cast<uint64_t>(file.st_size)) {
    return absl::InvalidArgumentError(absl::StrCat("the registration says ", length,
                                                   " bytes and the memfd has ", file.st_size,
                                                   ": both must be the same, and at least 1"));
  }
  if (!read_only && (*seals & kWriteSeals) != 0) {
    return absl::FailedPreconditionError(
        "the memfd is sealed against writing (F_SEAL_WRITE or F_SEAL_FUTURE_WRITE), and the "
        "registration allows it: set flag 1 (read only), or leave the seal out");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Region>> Region::Map(int memfd, uint64_t length, bool read_only) {
  if (absl::Status status = Check(memfd, length, read_only); !status.ok()) return status;
  const std::shared_ptr<Region> region(new Region);
  struct stat file = {};
  fstat(memfd, &file);
  region->file_ = {file.st_dev, file.st_ino};
  region->size_ = length;
  region->read_only_ = read_only;

  if (!read_only) {
    auto writable = GuardedMapping::Map(memfd, length, true, MAP_SHARED, region->broken_);
    if (!writable.ok()) return writable.status();
    region->writable_ = *std::move(writable);
    if (absl::Status status = region->writable_->Populate(); !status.ok()) return status;
  }
  // What is sealed against writing is mapped privately, which is the same to a reader: before
  // Linux 6.7 the system took any shared mapping for one that could be made writable.
  const bool sealed = (fcntl(memfd, F_GET_SEALS) & F_SEAL_WRITE) != 0;
  auto readable =
      GuardedMapping::Map(memfd, length, false, sealed ? MAP_PRIVATE : MAP_SHARED, region->broken_);
  if (!readable.ok()) return readable.status();
  region->readable_ = *std::move(readable);
  if (absl::Status status = region->readable_->Populate(); !status.ok()) return status;
  return region;
}

std::shared_ptr<Region> Region::OnDevice(std::unique_ptr<DeviceMemory> memory, uint64_t length,
                                         bool read_only) {
  const std::shared_ptr<Region> region(new Region);
  // Devices' addresses tell all their memory apart, and are no file's.
  region->file_ = {.device = ~dev_t{0}, .inode = ~ino_t{0}};
  region->origin_ = memory->address();
  region->size_ = length;
  region->read_only_ = read_only;
  region->device_memory_ = std::move(memory);
  return region;
}

Region::~Region() = default;

}  // namespace gradclip
