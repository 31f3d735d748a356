// Survives memory that turns out not to be there: where a page of a guarded range cannot be read or
// written (SIGBUS), a page of zeros takes its place, a flag is set, and whoever touched it goes on.
// Where many pages of a range are missing, zeros take the place of all of it.
//
// Works by the process's action for SIGBUS, taken over when the first range is guarded and then
// kept. Faults anywhere else go to the action that was there before, so the process dies as it
// would have. REQUIRES: nobody else sets that action later, and no thread that touches guarded
// memory blocks SIGBUS. Thread-safe.
#ifndef GRADCLIP_SERVER_SHM_PAGE_FAULTS_H_
#define GRADCLIP_SERVER_SHM_PAGE_FAULTS_H_

#include <atomic>
#include <cstddef>

namespace gradclip {

// Guards one mapped range for as long as it lives.
class PageFaultGuard {
 public:
  // The range is whole pages, mapped with `protection` (PROT_*). `broken` becomes true before the
  // first page is replaced, and outlives the guard.
  PageFaultGuard(std::byte* begin, size_t bytes, int protection, std::atomic<bool>& broken);
  // REQUIRES: nobody touches the range any more, and it is still mapped.
  ~PageFaultGuard();

  PageFaultGuard(const PageFaultGuard&) = delete;
  PageFaultGuard& operator=(const PageFaultGuard&) = delete;

 private:
  struct GuardedRange* slot_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_PAGE_FAULTS_H_
