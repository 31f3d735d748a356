// What befalls a chaos run, all of it chosen by a seed.
#ifndef GRADCLIP_TESTS_CHAOS_FAULTS_H_
#define GRADCLIP_TESTS_CHAOS_FAULTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace gradclip {

struct Fault {
  enum class Target { kRank, kServer, kRedis };

  absl::Duration at;  // from the run's start
  Target target = Target::kRank;
  uint32_t index = 0;    // which rank or server
  bool is_kill = false;  // SIGKILL, and a new process at `lasts`; else SIGSTOP until then
  absl::Duration lasts = {};
};

// "rank 3 stands still for 0.2s at 1.5s".
std::string Describe(const Fault& fault);

// Those of the first `length` of a run, in order.
std::vector<Fault> PlanFaults(uint64_t seed, uint32_t ranks, uint32_t servers,
                              absl::Duration length);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CHAOS_FAULTS_H_
