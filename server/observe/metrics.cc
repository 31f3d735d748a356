#include "server/observe/metrics.h"

#include <prometheus/text_serializer.h>

#include "absl/strings/string_view.h"

namespace gradclip {

using prometheus::MetricType;

Metrics::Metrics(Means means)
    : means_(std::move(means)),
      calls_(means_.backends),
      jobs_(means_.per_job ? std::make_unique<JobMetrics>() : nullptr) {}

void Metrics::Count(const CallRecord& call) {
  if (jobs_ != nullptr) jobs_->Count(call);
  calls_.Count(call);  // last, as it is collected first
}

std::vector<prometheus::MetricFamily> Metrics::Collect() const {
  Families families;
  calls_.Collect(families);
  CollectState(families);
  if (jobs_ != nullptr) jobs_->Collect(families);
  process_.Collect(families);
  return families;
}

std::string Metrics::Expose() const {
  return prometheus::TextSerializer().Serialize(Collect());
}

void Metrics::CollectDevices(Families& families, const std::vector<ServerState::Device>& devices) {
  const auto collect = [&](const char* name, const char* help, auto value) {
    prometheus::MetricFamily& family = AddFamily(families, MetricType::Gauge, name, help);
    for (const ServerState::Device& device : devices) {
      AddValue(family, {{"device", device.name}}, static_cast<double>(value(device)));
    }
  };
  if (devices.empty()) return;
  collect("gradclip_device_up", "1, or 0 once the device has failed.",
          [](const auto& device) { return device.up ? 1 : 0; });
  collect("gradclip_device_memory_budget_bytes",
          "Bytes of the device's memory that all calls together may take.",
          [](const auto& device) { return device.memory_budget_bytes; });
  collect("gradclip_device_memory_used_bytes", "Bytes of that which calls hold now.",
          [](const auto& device) { return device.memory_used_bytes; });
  collect("gradclip_device_calls", "Calls that use the device now.",
          [](const auto& device) { return device.calls; });
}

void Metrics::CollectState(Families& families) const {
  const ServerState state = means_.state();
  const auto gauge = [&](const char* name, const char* help, uint64_t value) {
    AddGauge(families, name, help, static_cast<double>(value));
  };
  gauge("gradclip_memory_budget_bytes", "Gradient bytes that all calls together may have kept.",
        state.budget_bytes);
  gauge("gradclip_memory_budget_used_bytes",
        "Bytes of that which calls and registered memory hold now.", state.budget_used_bytes);
  gauge("gradclip_declarations_budget_bytes",
        "Bytes that the parsed start messages of all calls together may hold.",
        state.declarations_bytes);
  gauge("gradclip_declarations_used_bytes", "Bytes of that which are held now.",
        state.declarations_used_bytes);
  prometheus::MetricFamily& arena =
      AddFamily(families, MetricType::Gauge, "gradclip_arena_bytes",
                "Bytes mapped for gradients, in use or kept for the next call.");
  AddValue(arena, {{"state", "used"}}, static_cast<double>(state.arena_used_bytes));
  AddValue(arena, {{"state", "free"}}, static_cast<double>(state.arena_free_bytes));

  gauge("gradclip_calls_active", "Calls in progress.", state.calls);
  gauge("gradclip_calls_waiting", "Requests for memory that wait for some of the budget.",
        state.waiting_calls);
  gauge("gradclip_calls_in_groups", "Calls in progress that have a place in a group's step.",
        state.group_calls);
  prometheus::MetricFamily& stores =
      AddFamily(families, MetricType::Gauge, "gradclip_group_store_up",
                "1 where the store of groups' steps can be used, 0 where it can't be reached.");
  for (const auto& [name, up] : state.group_stores) {
    AddValue(stores, {{"endpoint", name}}, up ? 1 : 0);
  }
  CollectDevices(families, state.devices);
  gauge("gradclip_regions", "Regions of registered memory.", state.regions);
  gauge("gradclip_region_bytes", "Bytes of registered memory that are mapped.", state.region_bytes);
  gauge("gradclip_connections", "Open connections.", state.connections);

  prometheus::MetricFamily& hits =
      AddFamily(families, MetricType::Counter, "gradclip_limit_hits_total",
                "How often callers have run into a limit, by the flag that sets it.");
  for (const absl::string_view limit : LimitHits::kLimits) {
    AddValue(hits, {{"limit", std::string(limit)}},
             static_cast<double>(means_.limit_hits.of(limit)));
  }
  AddCounter(families, "gradclip_log_lines_lost_total",
             "Lines of the log that were dropped, as its reader was too slow.",
             static_cast<double>(state.lost_log_lines));
  gauge("gradclip_draining", "1 once the server was told to stop and takes no new calls, else 0.",
        state.draining ? 1 : 0);
  prometheus::MetricFamily& backends = AddFamily(
      families, MetricType::Gauge, "gradclip_backend_info", "1, labelled with what computes.");
  for (const std::string& name : means_.backends) AddValue(backends, {{"backend", name}}, 1);
  AddValue(AddFamily(families, MetricType::Gauge, "gradclip_build_info",
                     "1, labelled with the server's version."),
           {{"version", means_.version}}, 1);
}

}  // namespace gradclip
