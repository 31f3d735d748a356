// How many bytes all calls together may hold, the share of one caller in them, and the queue of
// those who wait for some. A caller is an identity, any string; the empty one is as good as others.
// Thread-safe.
//
// Who comes first. Waiters of one caller are served first come, first served. A caller waits for
// bytes of its own where its first waiter does not fit within its limit beside what it holds
// already; nobody is held back for that. All other callers that wait take turns, in the order in
// which they came to wait for others' bytes. Whose turn it is holds everybody else back until its
// first waiter has its bytes, so that large requests are served at all. A turn ends with the grant
// or the cancellation of the waiter whose it was, and what else its caller waits for then comes
// after everybody who takes turns by then.
//
// Hence, of any waiter from the moment on in which it is its caller's first and within that
// caller's limit: each other caller is granted at most one request before it, however many it
// makes; and while it holds others back, it waits for bytes of other callers, never for its own
// caller's.
//
// What this does not give: turns are equal, whatever the bytes of each; and nothing is taken back,
// so that a turn lasts as long as others keep what they hold.
//
// Every operation takes a time that grows with the logarithm of the number of callers that hold
// something or wait, and with nothing else but the number of those that it grants. Of other callers
// nothing is kept.
#ifndef GRADCLIP_SERVER_MEMORY_BUDGET_H_
#define GRADCLIP_SERVER_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <string_view>

namespace gradclip {

struct BudgetLimits {
  // Bytes that one caller may hold; all there are where that is less.
  uint64_t max_bytes_per_caller = std::numeric_limits<uint64_t>::max();
  // Requests that may wait, in all and of one caller. Where all may be of one caller, that one can
  // keep others from waiting.
  uint64_t max_waiting = std::numeric_limits<uint64_t>::max();
  uint64_t max_waiting_per_caller = std::numeric_limits<uint64_t>::max();
};

class MemoryBudget {
  struct Core;     // shared with reservations and waiters, so that none of them can outlive it
  struct Account;  // what one caller holds and waits for

 public:
  explicit MemoryBudget(uint64_t total_bytes, const BudgetLimits& limits = {});
  ~MemoryBudget();  // REQUIRES: no reservation and no waiter is left

  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Bytes that a caller holds from a budget, given back on destruction or Release(). Movable. Not
  // thread-safe by itself. Giving bytes back may run the callbacks of those who waited, on this
  // thread: hold no lock that they take. Those that a callback sets free by giving bytes back
  // itself run after it, not inside it.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    uint64_t bytes() const { return bytes_; }
    void Release();
    // Takes other's bytes into this one. REQUIRES: the same budget and caller, or either empty.
    void Absorb(Reservation&& other);

   private:
    friend struct Core;
    friend class MemoryBudget;
    Reservation(std::shared_ptr<Core> core, Account* account, uint64_t bytes);

    std::shared_ptr<Core> core_;  // null: holds nothing
    Account* account_ = nullptr;  // while there are bytes; the core's
    uint64_t bytes_ = 0;
  };

  // One place in the queue. Cancel() and the grant race: exactly one of them wins. Thread-safe; may
  // outlive the budget. Dropping it does not cancel.
  class Waiter {
   public:
    // True: the callback has not run and never will; those behind may be granted now, on this
    // thread. False: it has run, runs now or is about to, once.
    bool Cancel();

   private:
    friend struct Core;
    friend class MemoryBudget;

    std::shared_ptr<Core> core_;
    uint64_t bytes_ = 0;
    // Guarded by the core's mutex.
    bool queued_ = false;
    std::function<void(Reservation)> granted_;
    Account* account_ = nullptr;                          // while queued; the core's
    std::list<std::shared_ptr<Waiter>>::iterator place_;  // while queued
  };

  // The limit that a request met which had to wait.
  enum class QueueFull { kMaxWaiting, kMaxWaitingPerCaller };

  // What became of a request; exactly one of the two is there.
  struct Admission {
    std::shared_ptr<Waiter> waiter;         // it was granted, or waits
    std::optional<QueueFull> refused = {};  // neither: its callback never runs
  };

  // True: `*out` holds `bytes`. False, with `*out` empty: they are not free, are more than the
  // caller may hold, or somebody comes first: this caller, or one who waits for others' bytes. 0
  // bytes are always granted.
  bool TryReserve(std::string_view caller, uint64_t bytes, Reservation* out);

  // Grants `bytes` at once, on this thread, or in their turn, on a thread that gives bytes back or
  // cancels; never under a lock. Where they are not free and a limit of the queue is reached, of
  // the caller's first, refuses. REQUIRES: bytes <= limits().max_bytes_per_caller.
  [[nodiscard]] Admission Reserve(std::string_view caller, uint64_t bytes,
                                  std::function<void(Reservation)> granted);

  uint64_t total_bytes() const;
  const BudgetLimits& limits() const;  // max_bytes_per_caller <= total_bytes()

  uint64_t used_bytes() const;
  uint64_t used_bytes(std::string_view caller) const;
  uint64_t waiting() const;  // requests in the queue
  uint64_t waiting(std::string_view caller) const;
  uint64_t callers() const;  // that hold something or wait

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_BUDGET_H_
