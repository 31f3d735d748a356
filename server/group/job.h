// A job's steps, and what must be known of those that are forgotten. Not thread-safe.
#ifndef GRADCLIP_SERVER_GROUP_JOB_H_
#define GRADCLIP_SERVER_GROUP_JOB_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/group/participant.h"
#include "server/group/step.h"

namespace gradclip {

// Of each step one attempt is known: the highest that anybody has come to. What has ended is never
// opened (again), even when it is known no more: no step up to the highest committed one, and of
// the later ones no attempt up to the highest aborted one.
class Job {
 public:
  // Opened by its first participant, whose generation and secret are the job's from then on.
  explicit Job(const Participant& opener);

  // PERMISSION_DENIED for another secret, FAILED_PRECONDITION for a generation that is over.
  absl::Status Admit(const Participant& participant) const;

  // The step that an admitted participant comes to, or null where it would be opened. An error
  // (FAILED_PRECONDITION) where it is over and not known any more, or a higher attempt is.
  absl::StatusOr<std::shared_ptr<Step>> Find(const StepId& id) const;

  // Opens the step. REQUIRES: Find() gave null. What ends thereby is aborted and returned: all of
  // older generations, and the step's lower attempt.
  std::vector<std::shared_ptr<Step>> Open(std::shared_ptr<Step> step);

  // The step has ended.
  void NoteEnd(const Step& step);
  // Forgets it.
  void Forget(const Step& step);

  bool empty() const { return steps_.empty(); }

 private:
  const std::string secret_hash_;
  uint64_t generation_;
  std::map<uint64_t, std::shared_ptr<Step>> steps_;  // by number; of this generation

  // All steps up to over_ are over, where any is; beyond it the attempts up to these.
  bool any_over_ = false;
  uint64_t over_ = 0;
  std::map<uint64_t, uint32_t> aborted_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_JOB_H_
