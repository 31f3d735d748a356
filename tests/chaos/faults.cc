#include "tests/chaos/faults.h"

#include <random>

#include "absl/strings/str_format.h"

namespace gradclip {

std::string Describe(const Fault& fault) {
  const std::string who =
      fault.target == Fault::Target::kRedis
          ? "Redis"
          : absl::StrFormat("%s %d", fault.target == Fault::Target::kRank ? "rank" : "server",
                            fault.index);
  return absl::StrFormat("%s %s for %s at %s", who, fault.is_kill ? "is dead" : "stands still",
                         absl::FormatDuration(fault.lasts), absl::FormatDuration(fault.at));
}

std::vector<Fault> PlanFaults(uint64_t seed, uint32_t ranks, uint32_t servers,
                              absl::Duration length) {
  std::mt19937_64 random(seed);
  const auto between = [&](int64_t least, int64_t most) {  // ms
    return absl::Milliseconds(std::uniform_int_distribution<int64_t>(least, most)(random));
  };
  std::vector<Fault> faults;
  for (absl::Duration at = between(200, 600); at < length; at += between(30, 350)) {
    Fault fault{.at = at};
    const uint64_t kind = random() % 20;
    if (kind < 11) {
      fault.target = Fault::Target::kRank;
      fault.index = static_cast<uint32_t>(random() % ranks);
    } else if (kind < 17) {
      fault.target = Fault::Target::kServer;
      fault.index = static_cast<uint32_t>(random() % servers);
    } else {
      fault.target = Fault::Target::kRedis;
    }
    fault.is_kill = random() % 2 == 0;
    // Longer, now and then, than --group-reconnect-grace and a server's lease in Redis.
    fault.lasts = random() % 6 == 0 ? between(1000, 4500) : between(20, 800);
    faults.push_back(fault);
  }
  return faults;
}

}  // namespace gradclip
