// What a server process uses: processor time, and memory with its peak since a mark. Linux only.
#ifndef GRADCLIP_TESTS_HOSTILE_SERVER_METER_H_
#define GRADCLIP_TESTS_HOSTILE_SERVER_METER_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "absl/time/time.h"

namespace gradclip::hostile {

// Whether the process still runs (and has not become a zombie).
bool IsRunning(pid_t pid);
// User and system time of all its threads; 0 where it has ended.
absl::Duration ProcessorTime(pid_t pid);
// The same of the calling thread.
absl::Duration ProcessorTimeOfThisThread();
// 0 where it has ended.
uint64_t ResidentBytes(pid_t pid);

// Looks at a process's resident memory every 5 ms, on a thread of its own. Thread-safe.
class PeakMemory {
 public:
  explicit PeakMemory(pid_t pid);
  ~PeakMemory();
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;

  uint64_t peak_bytes() const { return peak_; }

 private:
  std::atomic<uint64_t> peak_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_SERVER_METER_H_
