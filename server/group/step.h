// One attempt at one step, as an automaton: events in, state out. Knows neither seats nor clocks.
// Not thread-safe.
#ifndef GRADCLIP_SERVER_GROUP_STEP_H_
#define GRADCLIP_SERVER_GROUP_STEP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/group/participant.h"
#include "server/group/store.h"

namespace gradclip {

class Step {
 public:
  enum class State : uint8_t { kOpen, kCommitted, kAborted };

  // Opened by a participant, who still has to Join().
  Step(const Participant& opener, absl::Time now);

  // Events. A step that has ended ignores them, but for Join() and Contribute(), which then say how
  // it ended: OK where it is committed and the contribution is the one that was taken.

  // Another call of the participant's rank.
  absl::Status Join(const Participant& participant, absl::Time now);
  // ALREADY_EXISTS, and nothing else happens, where another one of this rank was taken. `by` is the
  // number of the call.
  absl::Status Contribute(uint32_t rank, std::string contribution, uint64_t by);
  // A call of the rank goes; `by` is what it contributed as.
  void Leave(uint32_t rank, uint64_t by, Leaving why, absl::Time now, absl::Duration grace);
  // The same, and ends the attempt with it.
  void Abort(uint32_t rank, uint64_t by, const absl::Status& why);
  // Something else has ended the attempt.
  void AbortAll(const absl::Status& why);
  void Tick(absl::Time now, absl::Duration grace);

  // When Tick() has something to do next; InfiniteFuture: never.
  absl::Time deadline(absl::Duration grace) const;

  State state() const { return state_; }
  const StepId& id() const { return id_; }
  bool has_come(uint32_t rank) const { return ranks_.contains(rank); }
  bool all_have_come() const { return ranks_.size() == world_size_; }
  const std::shared_ptr<const Outcome>& outcome() const { return outcome_; }  // where committed
  const absl::Status& aborted() const { return aborted_; }  // where aborted; else OK

 private:
  struct Rank {
    uint64_t calls = 0;  // that have come and not gone
    uint64_t by = 0;     // which of them contributed, where one did
  };

  bool IsHeldBy(uint32_t rank, uint64_t by) const;  // or by nobody
  void Commit();
  void End(const absl::Status& why);
  // Of those who have not contributed: who never came, who came and has not sent all, whose
  // connection was lost.
  std::string DescribeMissing() const;

  const StepId id_;
  const Terms terms_;
  const uint32_t terms_rank_;
  const uint32_t world_size_;

  State state_ = State::kOpen;
  const absl::Time opened_;
  absl::Duration timeout_;
  uint32_t timeout_rank_;
  std::map<uint32_t, Rank> ranks_;  // that have come
  // Those of them that have neither contributed nor a call left, and since when.
  std::map<uint32_t, absl::Time> lost_;
  std::map<uint32_t, std::string> contributions_;  // serialised
  std::shared_ptr<const Outcome> outcome_;
  absl::Status aborted_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_STEP_H_
