#include "server/observe/job_metrics.h"

#include <utility>
#include <vector>

namespace gradclip {
namespace {

double Value(const std::atomic<uint64_t>& counter) {
  return static_cast<double>(counter.load(std::memory_order_relaxed));
}

}  // namespace

JobMetrics::Job& JobMetrics::Find(const std::string& name) {
  if (name == kOthers) return others_;
  const std::lock_guard lock(mutex_);
  if (const auto found = jobs_.find(name); found != jobs_.end()) return found->second;
  return jobs_.size() < kMaxJobs ? jobs_[name] : others_;
}

void JobMetrics::Count(const CallRecord& call) {
  if (!call.group.has_value()) return;
  Job& job = Find(call.group->job);
  const auto add = [](std::atomic<uint64_t>& counter, uint64_t amount) {
    counter.fetch_add(amount, std::memory_order_relaxed);
  };
  add(call.status.ok() ? job.ok : job.failed, 1);
  add(job.bytes, call.bytes_in + call.shared_bytes);
  if (call.status.ok() && call.clipped) add(job.clipped, 1);
  if (call.nonfinite_norm) add(job.nonfinite, 1);
}

void JobMetrics::Collect(Families& families) const {
  std::vector<std::pair<std::string, const Job*>> jobs = {{std::string(kOthers), &others_}};
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, job] : jobs_) jobs.emplace_back(name, &job);
  }
  prometheus::MetricFamily& calls =
      AddFamily(families, prometheus::MetricType::Counter, "gradclip_job_calls_total",
                "Ranks' calls of one job that have ended, by whether their status was OK.");
  for (const auto& [name, job] : jobs) {
    AddValue(calls, {{"job_name", name}, {"result", "ok"}}, Value(job->ok));
    AddValue(calls, {{"job_name", name}, {"result", "error"}}, Value(job->failed));
  }
  const auto collect = [&](const char* metric, const char* help,
                           std::atomic<uint64_t> Job::*counter) {
    prometheus::MetricFamily& family =
        AddFamily(families, prometheus::MetricType::Counter, metric, help);
    for (const auto& [name, job] : jobs) {
      AddValue(family, {{"job_name", name}}, Value(job->*counter));
    }
  };
  collect("gradclip_job_gradient_bytes_total",
          "Gradient bytes of one job, received as data or in shared memory.", &Job::bytes);
  collect("gradclip_job_clipped_calls_total",
          "Successful calls of one job whose gradient was over its max_norm.", &Job::clipped);
  collect("gradclip_job_nonfinite_calls_total",
          "Calls of one job whose total norm was NaN or infinite.", &Job::nonfinite);
}

}  // namespace gradclip
