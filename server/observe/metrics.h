// All of the server's metrics, for Prometheus. Thread-safe.
//
// Calls are counted as they end; the state of the server is looked at when somebody scrapes.
// Nothing here waits for a scrape, and no two servers share anything. METRICS.md lists every
// metric.
#ifndef GRADCLIP_SERVER_OBSERVE_METRICS_H_
#define GRADCLIP_SERVER_OBSERVE_METRICS_H_

#include <prometheus/metric_family.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/observe/call_metrics.h"
#include "server/observe/job_metrics.h"
#include "server/observe/limit_hits.h"
#include "server/observe/log.h"
#include "server/observe/process_metrics.h"

namespace gradclip {

// How the server stands at one moment.
struct ServerState {
  uint64_t budget_bytes = 0;  // --memory-budget
  uint64_t budget_used_bytes = 0;
  uint64_t declarations_bytes = 0;  // the budget of parsed start messages
  uint64_t declarations_used_bytes = 0;
  uint64_t arena_used_bytes = 0;
  uint64_t arena_free_bytes = 0;
  uint64_t calls = 0;
  uint64_t waiting_calls = 0;
  uint64_t group_calls = 0;
  std::vector<std::pair<std::string, bool>> group_stores;  // name, and whether it can be used
  struct Device {
    std::string name;  // "cuda/0"
    bool up = false;   // it has not failed
    uint64_t memory_budget_bytes = 0;
    uint64_t memory_used_bytes = 0;
    uint64_t calls = 0;
  };
  std::vector<Device> devices;
  uint64_t regions = 0;
  uint64_t region_bytes = 0;
  uint64_t connections = 0;
  uint64_t lost_log_lines = 0;
  bool draining = false;
};

class Metrics {
 public:
  struct Means {
    std::string version;
    std::vector<std::string> backends;  // that calls may work with, the preferred one first
    bool per_job = false;               // --metrics-per-job
    const LimitHits& limit_hits;        // must outlive this
    // Asked at each scrape, on its thread. Must not block.
    std::function<ServerState()> state;
  };
  explicit Metrics(Means means);

  // Once for each call, where it has ended.
  void Count(const CallRecord& call);

  std::vector<prometheus::MetricFamily> Collect() const;
  // The same as text, in Prometheus's format of version 0.0.4.
  std::string Expose() const;
  static constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";

 private:
  void CollectState(Families& families) const;
  static void CollectDevices(Families& families, const std::vector<ServerState::Device>& devices);

  const Means means_;
  CallMetrics calls_;
  std::unique_ptr<JobMetrics> jobs_;  // null without --metrics-per-job
  ProcessMetrics process_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_METRICS_H_
