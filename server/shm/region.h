// Memory of another process, at hand here: a sealed memfd, mapped, or memory of a device, open.
// Thread-safe; the memory itself may be written by its owner at any time.
#ifndef GRADCLIP_SERVER_SHM_REGION_H_
#define GRADCLIP_SERVER_SHM_REGION_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/backend/device.h"
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
  // The same of a device's memory, `length` bytes of it.
  static std::shared_ptr<Region> OnDevice(std::unique_ptr<DeviceMemory> memory, uint64_t length,
                                          bool read_only);
  ~Region();  // unmaps, or closes

  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // Null: it is the host's.
  DeviceMemory* device_memory() const { return device_memory_.get(); }

  // REQUIRES: it is the host's.
  const std::byte* data() const { return readable_->data(); }  // mapped without the right to write
  std::byte* writable_data() const {                           // null where read_only()
    return writable_ == nullptr ? nullptr : writable_->data();
  }

  uint64_t size() const { return size_; }
  bool read_only() const { return read_only_; }

  // Regions with equal files are the same memory: the bytes of that from origin() on.
  struct File {
    dev_t device = 0;
    ino_t inode = 0;
    bool operator==(const File&) const = default;
    bool operator<(const File& other) const {
      return device != other.device ? device < other.device : inode < other.inode;
    }
  };
  const File& file() const { return file_; }
  uint64_t origin() const { return origin_; }

  // A page could not be read or written (SIGBUS): it holds zeros of our own from then on. Check it
  // after the memory has been used; once true it stays so.
  bool broken() const { return broken_.load(std::memory_order_acquire); }

 private:
  Region() = default;

  uint64_t size_ = 0;
  bool read_only_ = false;
  File file_;
  uint64_t origin_ = 0;
  std::atomic<bool> broken_ = false;  // set by the mappings below
  std::unique_ptr<GuardedMapping> readable_;
  std::unique_ptr<GuardedMapping> writable_;
  std::unique_ptr<DeviceMemory> device_memory_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGION_H_
