// Memory for the ranks of a step whose bytes this server keeps. Ranks that reserved one by one
// could hold what others of their group wait for, for ever. So a step takes what all of its ranks
// need in one piece, once all of them have said how much that is; until then it holds nothing.
// Steps are served in the order in which they were complete. Thread-safe.
#ifndef GRADCLIP_SERVER_GROUP_ADMISSION_H_
#define GRADCLIP_SERVER_GROUP_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/group/participant.h"
#include "server/memory/budget.h"

namespace gradclip {

class GroupAdmission {
 public:
  // Shared by the step's ranks; given back with the last copy.
  using Share = std::shared_ptr<const MemoryBudget::Reservation>;
  // RESOURCE_EXHAUSTED where the step needs more than one caller may have, or too many wait.
  using OnAdmitted = std::function<void(absl::StatusOr<Share>)>;

  // `budget` must outlive this, and this all places.
  explicit GroupAdmission(MemoryBudget& budget) : budget_(budget) {}
  // The last call has ended, on another thread: gRPC keeps the order, and the lock shows it.
  ~GroupAdmission() { const std::lock_guard lock(mutex_); }

  // What one call has in its step. Dropping it takes back what it said.
  class Place {
   public:
    ~Place();

    // Once: what the call needs. True: `on_admitted` is called once, where that is not 0, unless
    // the place is dropped before; on any thread, perhaps here. False: the step had its memory, but
    // has given all of it back since, or had less for this rank; the call has to find its own.
    bool Declare(uint64_t bytes, OnAdmitted on_admitted);
    bool declared() const { return declared_; }

    // Since when all ranks of the step have been waiting for memory, where they are.
    std::optional<std::chrono::steady_clock::time_point> waiting_since() const;

   private:
    friend class GroupAdmission;
    struct Step;
    Place(GroupAdmission& admission, std::shared_ptr<Step> step, uint32_t rank)
        : admission_(admission), step_(std::move(step)), rank_(rank) {}

    GroupAdmission& admission_;
    const std::shared_ptr<Step> step_;
    const uint32_t rank_;
    bool declared_ = false;  // the caller's thread alone
  };

  // A place for the participant's call. Null where another call of its rank has one: that one
  // counts.
  std::unique_ptr<Place> Take(const Participant& participant);

 private:
  using Step = Place::Step;

  bool Declare(Place& place, uint64_t bytes, OnAdmitted on_admitted);
  void Drop(Place& place);
  void Reserve(const std::shared_ptr<Step>& step);

  MemoryBudget& budget_;
  mutable std::mutex mutex_;
  std::map<StepId, std::weak_ptr<Step>> steps_;  // guarded by mutex_
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_GROUP_ADMISSION_H_
