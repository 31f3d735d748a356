// How often callers have run into each limit: what metrics are made of. Thread-safe.
#ifndef GRADCLIP_SERVER_OBSERVE_LIMIT_HITS_H_
#define GRADCLIP_SERVER_OBSERVE_LIMIT_HITS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace gradclip {

class LimitHits {
 public:
  // The limits, each by the name of its flag: "max-calls".
  static constexpr std::array<absl::string_view, 24> kLimits = {"admission-timeout",
                                                                "group-admission-timeout",
                                                                "idle-timeout",
                                                                "max-bytes-per-caller",
                                                                "max-call-bytes",
                                                                "max-calls",
                                                                "max-calls-per-caller",
                                                                "max-connections",
                                                                "max-connections-per-peer",
                                                                "max-dimensions",
                                                                "max-group-bytes",
                                                                "max-message-bytes",
                                                                "max-pending-registrations",
                                                                "max-ranges",
                                                                "max-regions",
                                                                "max-regions-per-peer",
                                                                "max-resets",
                                                                "max-shared-bytes",
                                                                "max-shared-bytes-per-peer",
                                                                "max-streams-per-connection",
                                                                "max-tensors",
                                                                "max-waiting-calls",
                                                                "max-waiting-calls-per-caller",
                                                                "memory-budget"};

  // Counts what `status` tells a caller: its message names the limit, as "(--max-calls". A message
  // that names none counts for none, one that names several for the first. What stands in quotes,
  // as a caller's own words do, does not count.
  void Count(const absl::Status& status);
  // Counts a limit whose caller is told nothing.
  void Count(absl::string_view limit);

  // 0 for what is no limit.
  uint64_t of(absl::string_view limit) const;

 private:
  std::array<std::atomic<uint64_t>, kLimits.size()> hits_ = {};
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_OBSERVE_LIMIT_HITS_H_
