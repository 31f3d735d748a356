// Who takes part in a step of a job, what it brings and what comes of it, whatever keeps the step.
// Values and pure functions.
#ifndef GRADCLIP_SERVER_GROUP_PARTICIPANT_H_
#define GRADCLIP_SERVER_GROUP_PARTICIPANT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/norm/norm_partial.h"

namespace gradclip {

// One try at one step of one job; the contract's Group.
struct StepId {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  uint32_t attempt = 0;

  bool operator<(const StepId& other) const {
    return std::tie(job, generation, step, attempt) <
           std::tie(other.job, other.generation, other.step, other.attempt);
  }

  // job "run7", step 120, attempt 0, generation 2
  std::string Describe() const;
};

// A field that all ranks must declare alike, and its value, as messages show them.
struct Term {
  std::string field;
  std::string value;
  bool operator==(const Term&) const = default;
};
using Terms = std::vector<Term>;

// A rank as it comes to a step.
struct Participant {
  StepId step;
  uint32_t rank = 0;        // < world_size
  uint32_t world_size = 1;  // also among the terms
  Terms terms;
  absl::Duration timeout;   // from the step's first arrival; > 0
  std::string secret_hash;  // of the job's secret
  std::string account;      // whose share of the group's memory it takes
};

// "max_norm is 2 at rank 3 and 1 at rank 0" for the first term in which the two differ.
std::optional<std::string> Disagreement(const Terms& mine, uint32_t my_rank, const Terms& others,
                                        uint32_t other_rank);

// What one rank adds to the step.
struct Contribution {
  NormPartial partial{2};
  uint64_t nonfinite_elements = 0;
  std::string first_nonfinite;  // for people; empty where there are none

  // The same bytes for the same contribution, and back. Parse: INVALID_ARGUMENT for what
  // Serialize() can't have written.
  std::string Serialize() const;
  static absl::StatusOr<Contribution> Parse(std::string_view bytes);
};

// What all ranks of a committed step are told alike.
struct Outcome {
  NormPartial total{2};
  uint64_t nonfinite_elements = 0;
  // For people: the first bad element of the lowest rank that has any; empty where none has.
  std::string first_nonfinite;
};

// Merges the serialised contributions of all ranks, in the order of ranks. INTERNAL where one is
// damaged or of another norm type.
absl::StatusOr<Outcome> Merge(const std::map<uint32_t, std::string>& contributions);

// "3, 5, 9" for up to ten ranks; "3, 5, ... and 12 more" where `count` is larger than `first`.
std::string ListRanks(const std::vector<uint32_t>& first, uint64_t count);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_PARTICIPANT_H_
