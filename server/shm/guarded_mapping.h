// A file mapped into memory, whose missing pages end nothing but what they were needed for: see
// page_faults.h. Thread-safe once it is populated.
#ifndef GRADCLIP_SERVER_SHM_GUARDED_MAPPING_H_
#define GRADCLIP_SERVER_SHM_GUARDED_MAPPING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/shm/page_faults.h"

namespace gradclip {

class GuardedMapping {
 public:
  // Maps the first `length` bytes of `file`, which may be closed then, to be read or, where
  // `writable`, read and written. `sharing` is MAP_SHARED or MAP_PRIVATE. `broken` becomes true
  // where a page is found missing, and outlives the mapping. RESOURCE_EXHAUSTED: no room for it;
  // FAILED_PRECONDITION: the file is not open for that. REQUIRES: length is 1 to 2^63 - 1.
  static absl::StatusOr<std::unique_ptr<GuardedMapping>> Map(int file, uint64_t length,
                                                             bool writable, int sharing,
                                                             std::atomic<bool>& broken);
  ~GuardedMapping();  // REQUIRES: nobody touches the memory any more

  GuardedMapping(const GuardedMapping&) = delete;
  GuardedMapping& operator=(const GuardedMapping&) = delete;

  // Has the system find memory for every page and map it, so that none is missing when it is
  // touched; on huge pages where it gives them (shmem_enabled). RESOURCE_EXHAUSTED: it can't.
  absl::Status Populate();

  // What Populate() does where the system has no call for it (before Linux 5.14): reads a byte of
  // every page. That allocates shared memory's pages, too, and survives where none is to be had.
  absl::Status TouchEveryPage();

  std::byte* data() const { return data_; }

 private:
  GuardedMapping(std::byte* data, uint64_t length, bool writable, std::atomic<bool>& broken);

  std::byte* const data_;
  const uint64_t length_;
  const std::atomic<bool>& broken_;
  std::optional<PageFaultGuard> guard_;
};

// `length` rounded up to whole pages; saturates at 2^64 - 1.
uint64_t WholePages(uint64_t length);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_GUARDED_MAPPING_H_
