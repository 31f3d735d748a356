// Where the steps of jobs are kept: which ranks have come, what they bring, how a step ended. One
// server keeps them in its memory (MemoryStore); several behind one address in Redis (RedisStore).
//
// A step (job, generation, step, attempt) is open from its first rank's arrival until it is
// committed or aborted by one atomic transition. Both are final: no attempt is both, and everybody
// who is told of a committed one is told the same.
//
// Thread-safe.
#ifndef GRADCLIP_SERVER_GROUP_STORE_H_
#define GRADCLIP_SERVER_GROUP_STORE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/group/participant.h"

namespace gradclip {

// How long things are kept and waited for; each is the flag of its name.
struct GroupTimes {
  absl::Duration reconnect_grace = absl::Seconds(10);  // --group-reconnect-grace
  absl::Duration result_ttl = absl::Minutes(5);        // --group-result-ttl
  absl::Duration job_ttl = absl::Hours(24);            // --group-job-ttl
};

// Why a call leaves a step that has not ended, or that it has not contributed to.
enum class Leaving {
  kLostConnection,  // its rank may come back within the grace
  kCancelled,       // by the caller: the step is aborted
};

class Store {
 public:
  // Called once, with the step's outcome or why there is none for this call; never after Leave() or
  // Fail() has returned, unless it runs already. On any thread, under no lock, perhaps amid
  // Contribute() of this seat or another. An error may come before the contribution, OK only after
  // it. The codes:
  //   ABORTED              the attempt is aborted; all ranks may go on with the next
  //   DEADLINE_EXCEEDED    the same, as the step's timeout came first
  //   FAILED_PRECONDITION  the same, as ranks disagree; or this call is of a generation, step or
  //                        attempt that is over, which disturbs nobody
  //   RESOURCE_EXHAUSTED   the same, as a rank's Abort() said; or this call found no room in the
  //                        store, which disturbs nobody
  //   PERMISSION_DENIED    another secret than the job's, which disturbs nobody
  //   ALREADY_EXISTS       another contribution of this rank has been taken, which disturbs nobody
  //   UNAVAILABLE          the store can't be reached: what becomes of the step is unknown
  using OnOutcome = std::function<void(absl::StatusOr<std::shared_ptr<const Outcome>>)>;

  // One call's place in a step. Of several of one rank the first to contribute counts. Dropping a
  // seat leaves it as a lost connection does.
  class Seat {
   public:
    virtual ~Seat() = default;

    // Whether the step had been committed when this call came: nothing is left to wait for. Only
    // known to stores that do not span servers; false for others.
    virtual bool came_late() const = 0;

    // Once.
    virtual void Contribute(const Contribution& contribution) = 0;

    // The call goes, without having an outcome. Each does nothing where the step has ended, or has
    // this rank's contribution from another call; no event may follow it.
    virtual void Leave(Leaving why) = 0;
    // The call has failed by itself: all others get ABORTED, with `why` in it.
    virtual void Fail(const absl::Status& why) = 0;
    // The whole attempt ends with `why`, whose code all ranks get.
    virtual void Abort(const absl::Status& why) = 0;
  };

  virtual ~Store() = default;

  // Opens the step, or joins those who have come to it. An error is what OnOutcome would have been
  // told, which then is never called.
  virtual absl::StatusOr<std::shared_ptr<Seat>> Join(const Participant& participant,
                                                     OnOutcome on_outcome) = 0;

  // Whether ranks of one step may come to different servers.
  virtual bool spans_servers() const = 0;

  // What the steps are kept in, by name: "memory", or each "HOST:PORT/DB". Up until it is known to
  // be out of reach.
  struct Endpoint {
    std::string name;
    bool up = false;
  };
  virtual std::vector<Endpoint> endpoints() const = 0;

  // Another value than before means that steps may be forgotten.
  virtual std::string instance() const = 0;

  // The server stops. Steps that can't be finished without new calls are aborted where they would
  // end with the server.
  virtual void StopOpening() = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_STORE_H_
