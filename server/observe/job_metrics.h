// What is counted of each job's calls, where --metrics-per-job asks for it. Thread-safe. A call
// takes a lock for as long as its job's name is looked up.
//
// Names come from callers, so their number is bounded: the first kMaxJobs jobs have series of their
// own for as long as the server runs, and all others share those of the name "other".
#ifndef GRADCLIP_SERVER_OBSERVE_JOB_METRICS_H_
#define GRADCLIP_SERVER_OBSERVE_JOB_METRICS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "server/observe/families.h"
#include "server/observe/log.h"

namespace gradclip {

class JobMetrics {
 public:
  static constexpr size_t kMaxJobs = 100;
  static constexpr std::string_view kOthers = "other";

  // Calls without a group have no job and count for none.
  void Count(const CallRecord& call);
  void Collect(Families& families) const;

 private:
  struct Job {
    std::atomic<uint64_t> ok = 0;
    std::atomic<uint64_t> failed = 0;
    std::atomic<uint64_t> bytes = 0;
    std::atomic<uint64_t> clipped = 0;
    std::atomic<uint64_t> nonfinite = 0;
  };

  Job& Find(const std::string& name);

  Job others_;
  mutable std::mutex mutex_;
  // Guarded by mutex_: the map, not the jobs, which stay where they are.
  std::map<std::string, Job, std::less<>> jobs_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_JOB_METRICS_H_
