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
#include "server/shm/guarded_mapping.h"

namespace gradclip {

class Region {
 public:
  // Whether Map() would take it, as far as can be said before; its errors. Touches no memory.
  // INVALID_ARGUMENT: no memfd (or one on huge pages), seals F_SEAL_SHRINK, F_SEAL_GROW and
  // F_SEAL_SEAL are not all set, length is 0 or not the file's; FAILED_PRECONDITION: F_SEAL_WRITE
  // or F_SEAL_FUTURE_WRITE is set and read_only is not.
  static absl::Status Check(int memfd, uint64_t length, bool read_only);

  // Maps the `length` bytes of `memfd`, all of its pages present, and leaves `memfd` open.
  // read_only: the server may not write. Takes a while: some 0.3 s per GiB, and 1.2 where the
  // system has to find pages first. Check()'s errors; FAILED_PRECONDITION, too, where `memfd` is
  // not open for it; RESOURCE_EXHAUSTED: the system has no memory for it. Nothing stays mapped on
  // error.
  static absl::StatusOr<std::shared_ptr<Region>> Map(int memfd, uint64_t length, bool read_only);
  ~Region();  // unmaps

  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  const std::byte* data() const { return readable_->data(); }  // mapped without the right to write
  std::byte* writable_data() const {                           // null where read_only()
    return writable_ == nullptr ? nullptr : writable_->data();
  }
  uint64_t size() const { return size_; }
  bool read_only() const { return writable_ == nullptr; }

  // Regions with equal files are the same memory.
  struct File {
    dev_t device = 0;
    ino_t inode = 0;
    bool operator==(const File&) const = default;
    bool operator<(const File& other) const {
      return device != other.device ? device < other.device : inode < other.inode;
    }
  };
  const File& file() const { return file_; }

  // A page could not be read or written (SIGBUS): it holds zeros of our own from then on. Check it
  // after the memory has been used; once true it stays so.
  bool broken() const { return broken_.load(std::memory_order_acquire); }

 private:
  Region() = default;

  uint64_t size_ = 0;
  File file_;
  std::atomic<bool> broken_ = false;  // set by the mappings below
  std::unique_ptr<GuardedMapping> readable_;
  std::unique_ptr<GuardedMapping> writable_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGION_H_
