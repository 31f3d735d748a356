// What calls are told that a step or a job refuses, whatever keeps it. Pure functions.
#ifndef GRADCLIP_SERVER_GROUP_REFUSALS_H_
#define GRADCLIP_SERVER_GROUP_REFUSALS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/group/participant.h"

namespace gradclip {

// Of the job.
absl::Status WrongSecret(const StepId& id);
absl::Status GenerationIsOver(const StepId& id, const absl::AlphaNum& current);
// Of the step: another attempt is there.
absl::Status AttemptIsOver(const StepId& id, const absl::AlphaNum& current);
absl::Status CommittedByAttempt(const StepId& id, const absl::AlphaNum& attempt);
// Of a step that is not known any more.
absl::Status StepIsForgotten(const StepId& id, const absl::AlphaNum& last_over);
absl::Status AttemptIsForgotten(const StepId& id, const absl::AlphaNum& last_aborted);
// The server opens no more steps.
absl::Status OpensNoSteps(const StepId& id);

// Why a rank ends the attempt for all: its call has failed by itself; or it says with what.
absl::Status RankFailed(uint32_t rank, const absl::Status& why);
absl::Status RankAborts(uint32_t rank, const absl::Status& why);
// The attempt has ended, for `why`.
absl::Status AttemptAborted(const StepId& id, absl::StatusCode code, absl::string_view why);
absl::Status CommittedWithOtherTerms(const StepId& id, absl::string_view disagreement);
absl::Status ContributionTaken(const StepId& id, uint32_t rank);

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REFUSALS_H_
