// One attack, run and measured.
#ifndef GRADCLIP_TESTS_HOSTILE_TRIAL_H_
#define GRADCLIP_TESTS_HOSTILE_TRIAL_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "tests/hostile/attack.h"
#include "tests/hostile/probe.h"

namespace gradclip::hostile {

struct Figures {
  uint64_t sent_bytes = 0;
  absl::Duration wall;
  absl::Duration attacker_time;  // of processors
  absl::Duration server_time;    // the same; the probe's calls included
  uint64_t peak_bytes = 0;       // above what the server held before
  uint64_t left_bytes = 0;       // the same, a second after the attacker has gone
  Probe::Seen during;
  std::optional<absl::Duration> after;  // of a call after the attack; none: not answered
  bool died = false;                    // the server has ended
  std::string remarks;
};

// address: where the attacker and the probe connect. pid: the server's. The attack takes about 10 s
// at most.
Figures RunTrial(const Attack& attack, const std::string& address, pid_t pid);

// Rows of a Markdown table: bytes sent; milliseconds of processors that the attack and the server
// used, and their ratio; the most that the server held above what it had held before, its ratio to
// what was sent, and what of it was left a second after; how many of the other callers' calls were
// answered and the slowest; when one was answered after the attack.
std::string TableHead();
std::string TableRow(const Attack& attack, const Figures& figures);

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_TRIAL_H_
