#include "server/shm/guarded_mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// A huge page of both x86-64 and Arm with pages of 4 KiB.
constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

uint64_t PageBytes() {
  static const auto bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

absl::Status NoMemory(uint64_t length, int error) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the system has no memory for all ", length, " bytes of the region (",
                   strerror(error), "): give the server's container more, or register less"));
}

}  // namespace

uint64_t WholePages(uint64_t length) {
  const uint64_t last = PageBytes() - 1;
  return length > UINT64_MAX - last ? UINT64_MAX : (length + last) & ~last;
}

absl::StatusOr<std::unique_ptr<GuardedMapping>> GuardedMapping::Map(int file, uint64_t length,
                                                                    bool writable, int sharing,
                                                                    std::atomic<bool>& broken) {
  assert(length > 0 && length <= INT64_MAX);
  void* const pages =
      mmap(nullptr, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, sharing, file, 0);
  if (pages == MAP_FAILED) {
    switch (errno) {
      case EACCES:
      case EPERM:
        return absl::FailedPreconditionError(absl::StrCat(
            "the memfd may not be mapped to be ", writable ? "written" : "read", " (",
            strerror(errno), "): send the descriptor that memfd_create gave, open for both"));
      case ENOMEM:
      case EAGAIN:
      case EOVERFLOW:
        return absl::ResourceExhaustedError(
            absl::StrCat("cannot map the ", length, " bytes of the region (", strerror(errno),
                         "): the server's address space (ulimit -v) or number of mappings "
                         "(vm.max_map_count) is used up"));
      default:
        return absl::InvalidArgumentError(
            absl::StrCat("the descriptor is none that can be mapped: ", strerror(errno)));
    }
  }
  return std::unique_ptr<GuardedMapping>(
      new GuardedMapping(static_cast<std::byte*>(pages), length, writable, broken));
}

GuardedMapping::GuardedMapping(std::byte* data, uint64_t length, bool writable,
                               std::atomic<bool>& broken)
    : data_(data), length_(length), broken_(broken) {
  guard_.emplace(data, WholePages(length), writable ? PROT_READ | PROT_WRITE : PROT_READ, broken);
}

GuardedMapping::~GuardedMapping() {
  guard_.reset();  // first: once the pages are unmapped, their addresses may be another's
  munmap(data_, length_);
}

absl::Status GuardedMapping::Populate() {
  // Hints, which fail where the system is built without. Not for the rest at the end: a huge page
  // there would hold more memory than the region's length, for which it is charged.
  const uint64_t huge_bytes = length_ / kHugePageBytes * kHugePageBytes;
  const uint64_t rest_bytes = WholePages(length_) - huge_bytes;
  if (huge_bytes > 0) madvise(data_, huge_bytes, MADV_HUGEPAGE);
  if (rest_bytes > 0) madvise(data_ + huge_bytes, rest_bytes, MADV_NOHUGEPAGE);
  // As if every page were read, for mappings to be written, too: a page of shared memory that was
  // read can be written without another fault (none were counted), and reading maps several pages
  // at a time. Memory that its owner has written: 0.3 s per GiB, and 0.5 by MADV_POPULATE_WRITE.
  int error = EAGAIN;
  for (int tries = 0; tries < 100 && (error == EAGAIN || error == EINTR); ++tries) {
    if (madvise(data_, WholePages(length_), MADV_POPULATE_READ) == 0) return absl::OkStatus();
    error = errno;
  }
  return error == EINVAL ? TouchEveryPage() : NoMemory(length_, error);
}

absl::Status GuardedMapping::TouchEveryPage() {
  for (uint64_t offset = 0; offset < length_; offset += PageBytes()) {
    static_cast<void>(*static_cast<const volatile std::byte*>(data_ + offset));
    if (broken_.load()) return NoMemory(length_, EFAULT);
  }
  return absl::OkStatus();
}

}  // namespace gradclip
