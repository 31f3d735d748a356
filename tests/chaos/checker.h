// Whether what ranks were told keeps the guarantee of server/group/README.md: no attempt is both
// committed and aborted, everybody who is told of a committed one is told the same, and both are
// final.
#ifndef GRADCLIP_TESTS_CHAOS_CHECKER_H_
#define GRADCLIP_TESTS_CHAOS_CHECKER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/chaos/history.h"

namespace gradclip {

// The limit that all ranks clip to, but for mistaken calls.
inline constexpr double kMaxNorm = 2000;

// What is wrong with the calls of one job of `world_size` ranks, one text for each fault; empty
// where nothing is. Times are of one clock. With no calls at all nothing is wrong: callers must see
// to it that enough has happened.
//
//   - An attempt that some calls say was committed, by an answer or in a refusal, none says was
//   aborted
//     or is over.
//   - All that say it was committed give one norm and coefficient: those of the gradients that all
//   ranks
//     had begun to send before any of these calls ended.
//   - No step is committed by two attempts. A call that begins after one has ended with its commit
//   gets
//     the same answer; with another gradient ALREADY_EXISTS; with another attempt
//     FAILED_PRECONDITION.
//   - A call that begins after one has ended with an attempt's end gets FAILED_PRECONDITION where
//   its own
//     attempt is lower.
//   - Nobody is told that its gradient was taken from another, or gets a status that fits no fault.
std::vector<std::string> FindViolations(const std::vector<Call>& calls, uint32_t world_size);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CHAOS_CHECKER_H_
