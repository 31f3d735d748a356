// The standard metrics of a process, of this one, as Linux tells of it: process_cpu_seconds_total,
// process_resident_memory_bytes and so on. Thread-safe.
#ifndef GRADCLIP_SERVER_OBSERVE_PROCESS_METRICS_H_
#define GRADCLIP_SERVER_OBSERVE_PROCESS_METRICS_H_

#include "server/observe/families.h"

namespace gradclip {

class ProcessMetrics {
 public:
  ProcessMetrics();

  // Reads /proc. What can't be read is left out.
  void Collect(Families& families) const;

 private:
  const double start_seconds_;  // since 1970; read once, so that it never seems to change
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_PROCESS_METRICS_H_
