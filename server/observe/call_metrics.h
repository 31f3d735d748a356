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

#include "server/observe/families.h"
#include "server/observe/histogram.h"
#include "server/observe/log.h"

namespace gradclip {

class CallMetrics {
 public:
  // `backend`: the name of the one that calls work with.
  explicit CallMetrics(std::string backend);

  void Count(const CallRecord& call);
  void Collect(Families& families) const;

 private:
  using Counter = std::atomic<uint64_t>;

  static constexpr size_t kRpcs = 4;
  static constexpr size_t kBackends = 2;  // the server's, and none
  static constexpr size_t kCodes = 17;    // of absl::StatusCode
  static constexpr size_t kReplies = 4;
  static constexpr size_t kOutcomes = 10;

  static size_t CallIndex(size_t rpc, size_t backend, size_t code);
  void CollectCalls(Families& families) const;
  void CollectBytes(Families& families) const;
  void CollectResults(Families& families) const;
  void CollectGroups(Families& families) const;

  const std::string backend_;
  std::array<Counter, kRpcs* kBackends* kCodes> calls_ = {};
  std::array<std::unique_ptr<Histogram>, kRpcs> seconds_;
  std::array<Counter, kReplies> received_bytes_ = {};
  std::array<Counter, kReplies> sent_bytes_ = {};
  std::array<Counter, kReplies> shared_bytes_ = {};
  std::array<Counter, kReplies> saved_bytes_ = {};
  Histogram total_norm_;
  Histogram coefficient_;
  Counter clipped_ = 0;
  Counter skipped_ = 0;
  Counter nonfinite_ = 0;
  Counter nonfinite_elements_ = 0;
  std::array<Counter, kOutcomes> group_calls_ = {};
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_CALL_METRICS_H_
