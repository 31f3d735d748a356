#include "server/group/refusals.h"

namespace gradclip {
namespace {

constexpr absl::string_view kForgotten = "its answer is kept no longer (--group-result-ttl)";

}  // namespace

absl::Status WrongSecret(const StepId& id) {
  return absl::PermissionDeniedError(absl::StrCat(
      id.Describe(), ": group.job_secret is not the one that the job was opened with"));
}

absl::Status GenerationIsOver(const StepId& id, const absl::AlphaNum& current) {
  return absl::FailedPreconditionError(
      absl::StrCat(id.Describe(), ": that generation is over, the job is at generation ", current));
}

absl::Status AttemptIsOver(const StepId& id, const absl::AlphaNum& current) {
  return absl::FailedPreconditionError(
      absl::StrCat(id.Describe(), ": that attempt is over, the step is at attempt ", current));
}

absl::Status CommittedByAttempt(const StepId& id, const absl::AlphaNum& attempt) {
  return absl::FailedPreconditionError(absl::StrCat(id.Describe(),
                                                    ": the step was committed by attempt ", attempt,
                                                    "; ask again with that one for its answer"));
}

absl::Status StepIsForgotten(const StepId& id, const absl::AlphaNum& last_over) {
  return absl::FailedPreconditionError(
      absl::StrCat(id.Describe(), ": that step is over, as the job has ended step ", last_over,
                   "; ", kForgotten));
}

absl::Status AttemptIsForgotten(const StepId& id, const absl::AlphaNum& last_aborted) {
  return absl::FailedPreconditionError(absl::StrCat(id.Describe(),
                                                    ": that attempt is over, as attempt ",
                                                    last_aborted, " was aborted; ", kForgotten));
}

absl::Status OpensNoSteps(const StepId& id) {
  return absl::UnavailableError(
      absl::StrCat(id.Describe(), ": the server is stopping and opens no steps. Try again"));
}

absl::Status RankFailed(uint32_t rank, const absl::Status& why) {
  return absl::AbortedError(absl::StrCat(
      "rank ", rank, " failed: ", absl::StatusCodeToString(why.code()), ": ", why.message()));
}

absl::Status RankAborts(uint32_t rank, const absl::Status& why) {
  return absl::Status(why.code(), absl::StrCat("rank ", rank, ": ", why.message()));
}

absl::Status AttemptAborted(const StepId& id, absl::StatusCode code, absl::string_view why) {
  return absl::Status(code, absl::StrCat(id.Describe(), " is aborted: ", why));
}

absl::Status CommittedWithOtherTerms(const StepId& id, absl::string_view disagreement) {
  return absl::FailedPreconditionError(
      absl::StrCat(id.Describe(), " is committed, and was with other options: ", disagreement));
}

absl::Status ContributionTaken(const StepId& id, uint32_t rank) {
  return absl::AlreadyExistsError(absl::StrCat(
      id.Describe(), ": another contribution of rank ", rank,
      " has been taken already; is there another process with this rank, or has the gradient "
      "changed since it was sent first?"));
}

}  // namespace gradclip
