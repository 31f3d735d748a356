// What is counted of calls that have ended. Thread-safe. Count() is a few atomic additions, without
// a lock or a look-up by name; a scrape only reads. METRICS.md says what every metric means.
#ifndef GRADCLIP_SERVER_OBSERVE_CALL_METRICS_H_
#define GRADCLIP_SERVER_OBSERVE_CALL_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/observe/families.h"
#include "server/observe/histogram.h"
#include "server/observe/log.h"

namespace gradclip {

class CallMetrics {
 public:
  // `backends`: the names of those that calls may work with.
  explicit CallMetrics(std::vector<std::string> backends);

  void Count(const CallRecord& call);
  void Collect(Families& families) const;

 private:
  using Counter = std::atomic<uint64_t>;

  static constexpr size_t kRpcs = 4;
  static constexpr size_t kCodes = 17;  // of absl::StatusCode
  static constexpr size_t kReplies = 4;
  static constexpr size_t kOutcomes = 10;

  size_t CallIndex(size_t rpc, size_t backend, size_t code) const;
  void CountResult(const CallRecord& call, size_t reply);
  void CollectCalls(Families& families) const;
  void CollectBytes(Families& families) const;
  void CollectResults(Families& families) const;
  void CollectGroups(Families& families) const;

  const std::vector<std::string> backends_;  // the last is "none"
  const std::unique_ptr<Counter[]> calls_;   // by CallIndex()
  std::array<std::unique_ptr<Histogram>, kRpcs> seconds_;
  std::array<Counter, kReplies> received_bytes_ = {};
  std::array<Counter, kReplies> sent_bytes_ = {};
  std::array<Counter, kReplies> shared_bytes_ = {};
  std::array<Counter, kReplies> saved_bytes_ = {};
  Histogram total_norm_;
  Histogram coefficient_;
  Counter clipped_ = 0;
  Counter skipped_ = 0;
  Counter fell_back_ = 0;
  Counter nonfinite_ = 0;
  Counter nonfinite_elements_ = 0;
  std::array<Counter, kOutcomes> group_calls_ = {};
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_CALL_METRICS_H_
