// What the calls of one server have going on in the steps that one Redis keeps. Not thread-safe,
// but for the call's callback: everything runs on the thread that moves the link.
//
// A call has one command under way at a time, so that nothing depends on the order in which those
// of one call arrive; commands of different calls may arrive in any. What a call has contributed by
// the time its join is sent goes with that.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_STEPS_H_
#define GRADCLIP_SERVER_GROUP_REDIS_STEPS_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/group/redis/link.h"
#include "server/group/redis/step_command.h"
#include "server/group/store.h"

namespace gradclip {

struct LocalStep;

// One call.
class RedisCall {
 public:
  RedisCall(Participant participant, std::string token, Store::OnOutcome on_outcome)
      : participant(std::move(participant)),
        token(std::move(token)),
        on_outcome_(std::move(on_outcome)) {}

  const Participant participant;
  const std::string token;  // the server's id and a number

  // What to tell the call; null where it has been told or has gone. Whoever takes it decides which.
  // Thread-safe.
  Store::OnOutcome Take();

 private:
  friend class RedisSteps;

  std::mutex mutex_;
  Store::OnOutcome on_outcome_;  // guarded by mutex_

  // Of RedisSteps.
  std::shared_ptr<LocalStep> step_;
  bool under_way_ = false;                   // a command is
  bool brought_ = false;                     // the join was sent with the contribution
  bool came_ = false;                        // the join was answered, and not refused
  std::string id_;                           // of the step's opening that it came to
  std::optional<std::string> contribution_;  // until it was taken
  bool taken_ = false;                       // it was
  std::optional<Going> going_;
  bool over_ = false;  // nothing is left to be done
};

class RedisSteps {
 public:
  // The link outlives this, and must not move before this is made.
  RedisSteps(RedisLink& link, const GroupTimes& times, uint32_t max_open_steps);
  ~RedisSteps();
  RedisSteps(const RedisSteps&) = delete;
  RedisSteps& operator=(const RedisSteps&) = delete;

  // How long a join waits for the contribution of a small gradient, which comes at once, to go with
  // it.
  static constexpr absl::Duration kJoinWait = absl::Microseconds(100);

  // `came`: when the call did.
  void Join(const std::shared_ptr<RedisCall>& call, absl::Time came);
  void Contribute(const std::shared_ptr<RedisCall>& call, std::string contribution);
  // The call's callback has been taken.
  void Leave(const std::shared_ptr<RedisCall>& call, Going going);
  void StopOpening() { may_open_ = false; }

  // Sends the joins that are due: those of calls that have contributed, and of those that were
  // given the time to.
  void SendJoins(absl::Time now);
  // Joins that are not sent yet.
  size_t joining() const { return joining_.size(); }

  // When to send joins or to look at steps again; and looking.
  absl::Time wake() const;
  void Look(absl::Time now);

 private:
  using Answer = absl::StatusOr<std::shared_ptr<const Outcome>>;
  using CallPointer = std::shared_ptr<RedisCall>;
  using StepPointer = std::shared_ptr<LocalStep>;

  StepCommands CommandsOf(const RedisCall& call) const;
  StepCommands CommandsOf(const LocalStep& step) const;
  std::optional<KnownJob> Known(const StepId& id) const;
  void Remember(const StepId& id);

  void SendJoin(const CallPointer& call);
  void Next(const CallPointer& call);
  void OnJoined(const CallPointer& call, absl::StatusOr<StepReply> reply);
  void OnContributed(const CallPointer& call, absl::StatusOr<StepReply> reply);
  void OnLeft(const CallPointer& call, absl::StatusOr<StepReply> reply);
  void Check(const StepPointer& step, bool bury);
  void OnChecked(const StepPointer& step, absl::StatusOr<StepReply> reply);
  void Fetch(const StepPointer& step);
  void OnFetched(const StepPointer& step, Answer outcome);

  // What a reply says of the step.
  void Note(const StepPointer& step, const StepReply& reply);
  void NoteOpen(const StepPointer& step, const StepReply& reply);
  // `sums`: the contributions, where they came with the word (ParseSums()).
  void NoteCommitted(const StepPointer& step, std::string_view sums);
  void NoteAborted(const StepPointer& step, const absl::Status& why);
  void NoteGone(const StepPointer& step);
  void LookBy(const StepPointer& step, absl::Time when);
  // Tells the call, if it is still to be told, and is done with it.
  void Tell(const CallPointer& call, Answer answer);
  void Drop(const CallPointer& call);
  void Abandon(const CallPointer& call);

  void OnMessage(std::string_view text);
  void OnReady(bool anew);
  void OnAway(const absl::Status& why);

  RedisLink& link_;
  const GroupTimes times_;
  const uint32_t max_open_steps_;
  bool may_open_ = true;
  std::map<std::string, StepPointer> steps_;  // by name; with calls in them
  struct Joining {
    CallPointer call;
    absl::Time due;
  };
  std::vector<Joining> joining_;                         // whose join is not sent yet
  std::set<std::pair<absl::Time, LocalStep*>> planned_;  // when to look at which
  std::map<std::string, KnownJob> known_;                // by job
  std::deque<std::string> known_order_;                  // its keys, the oldest first
};

// A step in which this server has calls.
struct LocalStep : std::enable_shared_from_this<LocalStep> {
  std::string name;
  std::set<std::shared_ptr<RedisCall>> calls;  // that are not over
  // Of the opening that calls came to last, and by which of them it is asked for; once one came.
  std::string id;
  struct Asker {
    Participant participant;
    std::string token;
  };
  std::optional<Asker> asker;
  std::shared_ptr<const Outcome> outcome;  // where committed, once it is here
  bool checking = false;                   // a check is under way
  bool recheck = false;                    // another has to follow the replies under way
  bool fetching = false;                   // a fetch is
  bool holding = false;                    // what Redis has forgotten is found out first
  absl::Time planned = absl::InfiniteFuture();
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_STEPS_H_
