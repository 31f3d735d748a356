#include "server/observe/call_metrics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace gradclip {
namespace {

using prometheus::MetricType;

// Calls of methods that are not here come last.
constexpr std::array<std::string_view, 4> kRpcNames = {"ClipGradNorm", "ComputeNorm",
                                                       "GetServerInfo", "unknown"};
constexpr size_t kGetServerInfo = 2;  // from here on no backend works
constexpr std::array<std::string_view, 4> kReplyNames = {"gradient", "gradient_if_changed",
                                                         "coefficient", "none"};

// How a call's place in its step ended.
enum Outcome : uint8_t {
  kCommitted,
  kAborted,
  kTimedOut,
  kRefused,
  kNoMemory,
  kWrongSecret,
  kSuperseded,
  kUnreachable,
  kLeft,
  kOther
};
constexpr std::array<std::string_view, 10> kOutcomeNames = {
    "committed",    "aborted",    "timed_out",   "refused", "no_memory",
    "wrong_secret", "superseded", "unreachable", "left",    "other"};

// From half a millisecond, which a small gradient takes, to the longest that a group may wait.
constexpr double kSeconds[] = {0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                               0.5,     1,      2.5,   5,      10,    30,   60,    120,  300, 600};
constexpr double kNorms[] = {1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05,
                             0.1,  0.2,  0.5,  1,    2,    5,    10,   20,   50,   100,
                             200,  500,  1e3,  2e3,  5e3,  1e4,  1e5,  1e6,  1e8};
constexpr double kCoefficients[] = {1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01,
                                    0.02, 0.05, 0.1,  0.2,  0.5,  0.9,  0.99, 1};

// The last where it is none of them.
template <size_t kSize>
size_t IndexOf(const std::array<std::string_view, kSize>& names, std::string_view name) {
  const auto found = std::find(names.begin(), names.end() - 1, name);
  return static_cast<size_t>(found - names.begin());
}

Outcome OutcomeOf(const std::optional<absl::StatusCode>& code) {
  if (!code.has_value()) return kLeft;
  switch (*code) {
    case absl::StatusCode::kOk:
      return kCommitted;
    case absl::StatusCode::kAborted:
      return kAborted;
    case absl::StatusCode::kDeadlineExceeded:
      return kTimedOut;
    case absl::StatusCode::kFailedPrecondition:
      return kRefused;
    case absl::StatusCode::kResourceExhausted:
      return kNoMemory;
    case absl::StatusCode::kPermissionDenied:
      return kWrongSecret;
    case absl::StatusCode::kAlreadyExists:
      return kSuperseded;
    case absl::StatusCode::kUnavailable:
      return kUnreachable;
    default:
      return kOther;
  }
}

void Add(std::atomic<uint64_t>& counter, uint64_t amount) {
  if (amount > 0) counter.fetch_add(amount, std::memory_order_release);
}

double Value(const std::atomic<uint64_t>& counter) {
  return static_cast<double>(counter.load(std::memory_order_acquire));
}

std::vector<std::string> WithNone(std::vector<std::string> backends) {
  backends.emplace_back("none");
  return backends;
}

}  // namespace

CallMetrics::CallMetrics(std::vector<std::string> backends)
    : backends_(WithNone(std::move(backends))),
      calls_(new Counter[kRpcs * backends_.size() * kCodes]()),
      total_norm_(kNorms),
      coefficient_(kCoefficients) {
  for (std::unique_ptr<Histogram>& seconds : seconds_) {
    seconds = std::make_unique<Histogram>(kSeconds);
  }
}

size_t CallMetrics::CallIndex(size_t rpc, size_t backend, size_t code) const {
  return (rpc * backends_.size() + backend) * kCodes + code;
}

void CallMetrics::Count(const CallRecord& call) {
  const size_t rpc = IndexOf(kRpcNames, call.rpc);
  // Codes beyond those that have names are absl's own UNKNOWN.
  const auto given = static_cast<size_t>(call.status.code());
  const size_t code = given < kCodes ? given : static_cast<size_t>(absl::StatusCode::kUnknown);
  size_t backend = 0;  // there are few
  while (backend + 1 < backends_.size() && backends_[backend] != call.backend) ++backend;
  seconds_[rpc]->Observe(call.milliseconds / 1000);

  const size_t reply = IndexOf(kReplyNames, call.reply);
  Add(received_bytes_[reply], call.bytes_in);
  Add(sent_bytes_[reply], call.bytes_out);
  Add(shared_bytes_[reply], call.shared_bytes);
  Add(nonfinite_, call.nonfinite_norm ? 1 : 0);
  Add(fell_back_, call.fell_back ? 1 : 0);
  Add(nonfinite_elements_, call.nonfinite_elements);
  if (call.group.has_value()) Add(group_calls_[OutcomeOf(call.group_outcome)], 1);

  if (call.status.ok()) CountResult(call, reply);
  // Last, as it is collected first: who finds the call here finds it everywhere.
  Add(calls_[CallIndex(rpc, backend, code)], 1);
}

void CallMetrics::CountResult(const CallRecord& call, size_t reply) {
  if (!call.reply.empty()) {
    const uint64_t gradient_bytes = call.bytes_in + call.shared_bytes;
    Add(saved_bytes_[reply], gradient_bytes - std::min(gradient_bytes, call.bytes_out));
  }
  Add(clipped_, call.clipped ? 1 : 0);
  Add(skipped_, call.skipped ? 1 : 0);
  if (call.norm.has_value() && std::isfinite(*call.norm)) total_norm_.Observe(*call.norm);
  if (call.coefficient.has_value() && std::isfinite(*call.coefficient)) {
    coefficient_.Observe(*call.coefficient);
  }
}

void CallMetrics::Collect(Families& families) const {
  CollectCalls(families);
  CollectBytes(families);
  CollectResults(families);
  CollectGroups(families);
}

void CallMetrics::CollectCalls(Families& families) const {
  static_assert(kRpcNames.size() == kRpcs);
  prometheus::MetricFamily& calls =
      AddFamily(families, MetricType::Counter, "gradclip_calls_total", "Calls that have ended.");
  for (size_t rpc = 0; rpc < kRpcs; ++rpc) {
    const size_t none = backends_.size() - 1;
    for (size_t backend = rpc < kGetServerInfo ? 0 : none; backend <= none; ++backend) {
      for (size_t code = 0; code < kCodes; ++code) {
        AddValue(calls,
                 {{"rpc", std::string(kRpcNames[rpc])},
                  {"code", absl::StatusCodeToString(static_cast<absl::StatusCode>(code))},
                  {"backend", backends_[backend]}},
                 Value(calls_[CallIndex(rpc, backend, code)]));
      }
    }
  }
  prometheus::MetricFamily& seconds =
      AddFamily(families, MetricType::Histogram, "gradclip_call_duration_seconds",
                "Time from a call's arrival to its end, waits for its caller included.");
  for (size_t rpc = 0; rpc < kRpcs; ++rpc) {
    prometheus::ClientMetric& metric = seconds.metric.emplace_back(seconds_[rpc]->Collect());
    metric.label = {{"rpc", std::string(kRpcNames[rpc])}};
  }
}

void CallMetrics::CollectBytes(Families& families) const {
  static_assert(kReplyNames.size() == kReplies);
  const auto collect = [&](const char* name, const char* help,
                           const std::array<Counter, kReplies>& counters, size_t replies) {
    prometheus::MetricFamily& family = AddFamily(families, MetricType::Counter, name, help);
    for (size_t reply = 0; reply < replies; ++reply) {
      AddValue(family, {{"reply", std::string(kReplyNames[reply])}}, Value(counters[reply]));
    }
  };
  collect("gradclip_gradient_received_bytes_total", "Gradient bytes that calls received as data.",
          received_bytes_, kReplies);
  collect("gradclip_gradient_sent_bytes_total", "Gradient bytes that calls sent back.", sent_bytes_,
          kReplies);
  collect("gradclip_gradient_shared_bytes_total",
          "Gradient bytes that calls measured, and perhaps scaled, in shared memory.",
          shared_bytes_, kReplies);
  collect("gradclip_gradient_saved_bytes_total",
          "Gradient bytes that successful calls of ClipGradNorm did not have to send back.",
          saved_bytes_, kReplies - 1);
}

void CallMetrics::CollectResults(Families& families) const {
  AddFamily(families, MetricType::Histogram, "gradclip_total_norm",
            "Total norms that successful calls were told, where finite.")
      .metric.push_back(total_norm_.Collect());
  AddFamily(families, MetricType::Histogram, "gradclip_coefficient",
            "Coefficients that successful calls were told, where finite.")
      .metric.push_back(coefficient_.Collect());
  AddCounter(families, "gradclip_clipped_calls_total",
             "Successful calls whose gradient was over its max_norm.", Value(clipped_));
  AddCounter(families, "gradclip_device_fallbacks_total",
             "Calls that a GPU was to measure and the CPU did, or went on with.",
             Value(fell_back_));
  AddCounter(families, "gradclip_skipped_calls_total",
             "Successful calls whose step is to be skipped, as the total norm was not finite.",
             Value(skipped_));
  AddCounter(families, "gradclip_nonfinite_calls_total",
             "Calls whose total norm was NaN or infinite, whatever they were told.",
             Value(nonfinite_));
  AddCounter(families, "gradclip_nonfinite_elements_total",
             "Elements that were NaN or infinite, of gradients whose total norm was found.",
             Value(nonfinite_elements_));
}

void CallMetrics::CollectGroups(Families& families) const {
  static_assert(kOutcomeNames.size() == kOutcomes);
  prometheus::MetricFamily& calls =
      AddFamily(families, MetricType::Counter, "gradclip_group_calls_total",
                "Ranks' calls of groups' steps that have ended, by what became of the step.");
  for (size_t outcome = 0; outcome < kOutcomes; ++outcome) {
    AddValue(calls, {{"outcome", std::string(kOutcomeNames[outcome])}},
             Value(group_calls_[outcome]));
  }
}

}  // namespace gradclip
