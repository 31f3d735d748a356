// How many bytes all calls together may hold, and the queue of those who wait for some.
// Thread-safe.
#ifndef GRADCLIP_SERVER_MEMORY_BUDGET_H_
#define GRADCLIP_SERVER_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>

namespace gradclip {

class MemoryBudget {
  struct Core;  // shared with reservations and waiters, so that none of them can outlive it

 public:
  explicit MemoryBudget(uint64_t total_bytes);
  ~MemoryBudget();  // REQUIRES: no reservation and no waiter is left

  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Bytes held from a budget, given back on destruction or Release(). Movable. Not thread-safe by
  // itself. Giving bytes back may run the callbacks of those who waited, on this thread: hold no
  // lock that they take. Those that a callback sets free by giving bytes back itself run after it,
  // not inside it.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    uint64_t bytes() const { return bytes_; }
    void Release();
    // Takes other's bytes into this one. REQUIRES: the same budget, or either empty.
    void Absorb(Reservation&& other);

   private:
    friend struct Core;
    friend class MemoryBudget;
    Reservation(std::shared_ptr<Core> core, uint64_t bytes);

    std::shared_ptr<Core> core_;  // null: holds nothing
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
    std::list<std::shared_ptr<Waiter>>::iterator place_;  // while queued
  };

  // True: `*out` holds `bytes`. False: they are not free or somebody waits for bytes, and `*out` is
  // empty. 0 bytes are always granted.
  bool TryReserve(uint64_t bytes, Reservation* out);

  // Grants `bytes` first come, first served: at once, on this thread, or later, on a thread that
  // gives bytes back; never under a lock. REQUIRES: bytes <= total_bytes().
  std::shared_ptr<Waiter> Reserve(uint64_t bytes, std::function<void(Reservation)> granted);

  uint64_t total_bytes() const;
  uint64_t used_bytes() const;
  uint64_t waiting() const;  // callers in the queue

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_BUDGET_H_
