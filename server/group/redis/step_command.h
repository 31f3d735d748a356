// The script's operations on a step as commands, and what they are answered. Values and pure
// functions; the operations are those of step.lua.
#ifndef GRADCLIP_SERVER_GROUP_REDIS_STEP_COMMAND_H_
#define GRADCLIP_SERVER_GROUP_REDIS_STEP_COMMAND_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/group/participant.h"
#include "server/group/redis/link.h"
#include "server/group/store.h"

namespace gradclip {

// What names a job in the keys: a hash of its name.
std::string JobHash(std::string_view job);
// "JOB:GENERATION:STEP:ATTEMPT", as messages name a step.
std::string StepName(const StepId& id);

// What a server has seen of a job, which a Redis that has lost its memory may know no more.
struct KnownJob {
  uint64_t generation = 0;
  uint64_t over = 0;  // the highest step that was committed
};

// How a call goes away.
struct Going {
  enum class Kind { kLost, kCancelled, kEnded } kind = Kind::kLost;
  absl::Status why = {};  // kEnded: what the attempt ends with
};

// All that the commands about one call share. Refers to what it is made of.
struct StepCommands {
  const Participant& participant;
  const std::string& token;
  const GroupTimes& times;
  absl::Duration lease;

  // `contribution`: empty where it follows later.
  RedisCommand Join(bool may_open, uint32_t max_open_steps, const std::optional<KnownJob>& known,
                    std::string contribution) const;
  // `id`: of the opening of the step, as the join was answered.
  RedisCommand Contribute(const std::string& id, std::string contribution) const;
  // An empty id: whichever the call has come to.
  RedisCommand Leave(const std::string& id, const Going& going) const;
  RedisCommand Check(const std::string& id, bool bury, const std::optional<KnownJob>& known) const;
  // All contributions of a committed step.
  RedisCommand Fetch() const;

 private:
  RedisCommand Make(std::string operation, const std::string& id) const;
};

struct StepReply {
  enum class Kind {
    kOpen,
    kCommitted,
    kAborted,  // with status
    kRefused,  // with status; the call alone
    kGone,     // the step is not known any more
  };
  Kind kind = Kind::kGone;
  std::string id = {};                            // where open or committed
  std::string sums = {};                          // where committed, perhaps: for ParseSums()
  absl::Duration due = absl::InfiniteDuration();  // where open: when to look again
  absl::Status status = {};

  // Of any operation. INTERNAL for what the script can't have answered.
  static absl::StatusOr<StepReply> Parse(const redisReply& reply, const Participant& participant);
};

// The outcome, of the answer to Fetch(); null where the step is not there as committed any more.
// INTERNAL where what is there is damaged.
absl::StatusOr<std::shared_ptr<const Outcome>> ParseFetched(const redisReply& reply,
                                                            const std::string& id,
                                                            uint32_t world_size);
// The same, of the contributions that the script sends with the word of their commit.
absl::StatusOr<std::shared_ptr<const Outcome>> ParseSums(std::string_view sums,
                                                         const std::string& id,
                                                         uint32_t world_size);

// A message of another server's.
struct StepMessage {
  enum class Kind { kCommitted, kAborted, kLook } kind = Kind::kLook;
  std::string step;  // StepName()
  absl::StatusCode code = absl::StatusCode::kAborted;
  std::string why;         // kAborted
  std::string sums;        // kCommitted, perhaps: for ParseSums()
  absl::Duration look_in;  // kLook

  static std::optional<StepMessage> Parse(std::string_view text);
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_REDIS_STEP_COMMAND_H_
