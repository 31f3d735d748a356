// How many bytes all calls together may hold, and the queue of those who wait for some.
// Thread-safe.
#ifndef GRADCLIP_SERVER_MEMORY_BUDGET_H_
#define GRADCLIP_SERVER_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <memory>

namespace gradclip {

class MemoryBudget {
 public:
  explicit MemoryBudget(uint64_t total_bytes);
  ~MemoryBudget();  // REQUIRES: no reservation and no waiter is left

  // Bytes held from a budget, given back on destruction or Release(). Movable.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    uint64_t bytes() const;
    void Release();
    // Takes other's bytes into this one. REQUIRES: the same budget, or either empty.
    void Absorb(Reservation&& other);
  };

  // One place in the queue. Cancel() and the grant race: exactly one of them wins.
  class Waiter {
   public:
    // True: the callback has not run and never will. False: it has run, or runs now.
    bool Cancel();
  };

  // Takes `bytes` at once, if they are free and nobody waits; else an empty Reservation (0 bytes
  // asked for is granted always: see granted()).
  bool TryReserve(uint64_t bytes, Reservation* out);

  // Grants `bytes` first come, first served: at once, on this thread, or later, on a thread that
  // gives bytes back; never under a lock. REQUIRES: bytes <= total_bytes().
  std::shared_ptr<Waiter> Reserve(uint64_t bytes, std::function<void(Reservation)> granted);

  uint64_t total_bytes() const;
  uint64_t used_bytes() const;
  uint64_t waiting() const;  // callers in the queue
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_BUDGET_H_
