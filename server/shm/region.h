// Memory of another process (a sealed memfd), mapped here. Thread-safe; the memory itself may be
// written by its owner at any time.
#ifndef GRADCLIP_SERVER_SHM_REGION_H_
#define GRADCLIP_SERVER_SHM_REGION_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradclip {

class Region {
 public:
  // Maps the first `length` bytes of `memfd`, all of its pages present, and leaves `memfd` open.
  // read_only: the server may not write. INVALID_ARGUMENT: no memfd (or one on huge pages), seals
  // F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL are not all set, length is 0 or not the file's;
  // FAILED_PRECONDITION: F_SEAL_WRITE or F_SEAL_FUTURE_WRITE is set and read_only is not;
  // RESOURCE_EXHAUSTED: the system has no memory for it.
  static absl::StatusOr<std::shared_ptr<Region>> Map(int memfd, uint64_t length, bool read_only);
  ~Region();  // unmaps

  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  const std::byte* data() const { return readable_; }  // mapped without the right to write
  std::byte* writable_data() const { return writable_; }  // null where read_only()
  uint64_t size() const { return size_; }
  bool read_only() const { return writable_ == nullptr; }

  // Regions with equal files are the same memory.
  struct File {
    dev_t device = 0;
    ino_t inode = 0;
    auto operator<=>(const File&) const = default;
  };
  const File& file() const { return file_; }

  // A page could not be read or written (SIGBUS): it holds zeros of our own from then on. Check it
  // after the memory has been used; once true it stays so.
  bool broken() const { return broken_.load(std::memory_order_acquire); }

 private:
  Region() = default;

  const std::byte* readable_ = nullptr;
  std::byte* writable_ = nullptr;
  uint64_t size_ = 0;
  File file_;
  std::atomic<bool> broken_ = false;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGION_H_
