#include "client/gradclip/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace gradclip {
namespace {

// Without these a server could be made to touch memory that is gone.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Huge pages have to lie at multiples of their size in the address space too.
constexpr uint64_t kHugePage = uint64_t{2} << 20;

absl::Status NotGiven(uint64_t bytes, int error) {
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the system gives no %d bytes of shared memory: %s", bytes, std::strerror(error)));
}

// Address space for `bytes`, in which a huge page begins; MAP_FAILED where there is none.
void* ReserveAligned(uint64_t bytes) {
  if (bytes < kHugePage) return mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* const reserved = mmap(nullptr, bytes + kHugePage, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  const auto begin = reinterpret_cast<uintptr_t>(reserved);
  const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t end = (aligned + bytes + page - 1) / page * page;
  if (aligned > begin) munmap(reserved, aligned - begin);
  munmap(reinterpret_cast<void*>(end), begin + bytes + kHugePage - end);
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(uint64_t bytes) {
  if (bytes == 0) return SharedMemory(-1, 0);
  const int memfd = memfd_create("gradclip-gradient", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (memfd < 0) return NotGiven(bytes, errno);
  SharedMemory memory(memfd, bytes);
  if (ftruncate(memfd, static_cast<off_t>(bytes)) != 0 || fcntl(memfd, F_ADD_SEALS, kSeals) != 0) {
    return NotGiven(bytes, errno);
  }
  if (absl::Status mapped = memory.Map(); !mapped.ok()) return mapped;
  return memory;
}

absl::StatusOr<SharedMemory> SharedMemory::Adopt(int memfd) {
  struct stat file {};
  const int seals = fcntl(memfd, F_GET_SEALS);
  if (fstat(memfd, &file) != 0 || seals < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "descriptor %d is no memfd: %s; make it with memfd_create(name, MFD_ALLOW_SEALING)", memfd,
        std::strerror(errno)));
  }
  if ((seals & kSeals) != kSeals && fcntl(memfd, F_ADD_SEALS, kSeals) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "memfd %d can't get the seals F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL: %s; make it with "
        "MFD_ALLOW_SEALING, and leave sealing to this call",
        memfd, std::strerror(errno)));
  }
  const int own = fcntl(memfd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("can't duplicate memfd %d: %s", memfd, std::strerror(errno)));
  }
  SharedMemory memory(own, static_cast<uint64_t>(file.st_size));
  if (absl::Status mapped = memory.Map(); !mapped.ok()) return mapped;
  return memory;
}

absl::Status SharedMemory::Map() {
  if (size_ == 0) return absl::OkStatus();
  void* const place = ReserveAligned(size_);
  if (place == MAP_FAILED) return NotGiven(size_, errno);
  void* const mapped =
      mmap(place, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd_, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    munmap(place, size_);
    if (error != EPERM && error != EACCES) return NotGiven(size_, error);
    return absl::InvalidArgumentError(
        absl::StrFormat("memfd %d can't be mapped for writing: %s; it must be open for reading and "
                        "writing, without "
                        "F_SEAL_WRITE and F_SEAL_FUTURE_WRITE",
                        memfd_, std::strerror(error)));
  }
  data_ = static_cast<std::byte*>(mapped);
  // Advice: without it, or where the system has none to give, all works on small pages.
  madvise(data_, size_, MADV_HUGEPAGE);
  return absl::OkStatus();
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
  if (memfd_ >= 0) close(memfd_);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : memfd_(std::exchange(other.memfd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

}  // namespace gradclip
