#include "server/memory/budget.h"

#include <cassert>
#include <mutex>
#include <utility>
#include <vector>

namespace gradclip {

struct MemoryBudget::Core : std::enable_shared_from_this<MemoryBudget::Core> {
  // Decided under the lock, but still to be told.
  struct Grant {
    std::function<void(Reservation)> granted;
    Reservation reservation;
  };

  explicit Core(uint64_t total) : total_bytes(total) {}

  // Grants from the head of the queue while there is room. REQUIRES: `mutex` is held.
  std::vector<Grant> GrantWaiters() {
    std::vector<Grant> grants;
    while (!queue.empty() && queue.front()->bytes_ <= total_bytes - used_bytes) {
      Waiter& waiter = *queue.front();
      used_bytes += waiter.bytes_;
      waiter.queued_ = false;
      grants.push_back(
          {std::move(waiter.granted_), Reservation(shared_from_this(), waiter.bytes_)});
      waiter.granted_ = nullptr;
      queue.pop_front();
    }
    return grants;
  }

  // Runs the callbacks. REQUIRES: no lock is held. A callback that gives bytes back comes here
  // again: its grants join the running loop, so that a long queue of callers that do so does not
  // become a stack as deep.
  static void Tell(std::vector<Grant> grants) {
    if (grants.empty()) return;
    thread_local std::vector<Grant>* running = nullptr;
    if (running != nullptr) {
      for (Grant& grant : grants) running->push_back(std::move(grant));
      return;
    }
    running = &grants;
    for (size_t i = 0; i < grants.size(); ++i) {
      Grant grant = std::move(grants[i]);  // the vector may grow meanwhile
      grant.granted(std::move(grant.reservation));
    }
    running = nullptr;
  }

  void Give(uint64_t bytes) {
    std::vector<Grant> grants;
    {
      std::lock_guard lock(mutex);
      assert(bytes <= used_bytes);
      used_bytes -= bytes;
      grants = GrantWaiters();
    }
    Tell(std::move(grants));
  }

  const uint64_t total_bytes;
  std::mutex mutex;
  // Guarded by `mutex`.
  uint64_t used_bytes = 0;
  std::list<std::shared_ptr<Waiter>> queue;
};

MemoryBudget::MemoryBudget(uint64_t total_bytes) : core_(std::make_shared<Core>(total_bytes)) {}

MemoryBudget::~MemoryBudget() {
  assert(used_bytes() == 0);
  assert(waiting() == 0);
}

MemoryBudget::Reservation::Reservation(std::shared_ptr<Core> core, uint64_t bytes)
    : core_(std::move(core)), bytes_(bytes) {}

MemoryBudget::Reservation::Reservation(Reservation&& other) noexcept
    : core_(std::move(other.core_)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryBudget::Reservation& MemoryBudget::Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    core_ = std::move(other.core_);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

MemoryBudget::Reservation::~Reservation() {
  Release();
}

void MemoryBudget::Reservation::Release() {
  // Emptied first: a callback that runs in Give() may come back to this object.
  const std::shared_ptr<Core> core = std::move(core_);
  const uint64_t bytes = std::exchange(bytes_, 0);
  core_ = nullptr;
  if (bytes > 0) core->Give(bytes);
}

void MemoryBudget::Reservation::Absorb(Reservation&& other) {
  assert(this != &other);
  assert(bytes_ == 0 || other.bytes_ == 0 || core_ == other.core_);
  if (other.bytes_ > 0) core_ = std::move(other.core_);
  bytes_ += std::exchange(other.bytes_, 0);
  other.core_ = nullptr;
}

bool MemoryBudget::Waiter::Cancel() {
  std::function<void(Reservation)> granted;  // destroyed, with all it owns, after the lock
  std::vector<Core::Grant> grants;
  {
    std::lock_guard lock(core_->mutex);
    if (!queued_) return false;
    queued_ = false;
    granted = std::move(granted_);
    granted_ = nullptr;
    // The queue's reference goes with the place; the caller's keeps this object.
    const std::shared_ptr<Waiter> self = std::move(*place_);
    core_->queue.erase(place_);
    grants = core_->GrantWaiters();
  }
  Core::Tell(std::move(grants));
  return true;
}

bool MemoryBudget::TryReserve(uint64_t bytes, Reservation* out) {
  *out = Reservation();
  if (bytes > 0) {
    std::lock_guard lock(core_->mutex);
    if (!core_->queue.empty() || bytes > core_->total_bytes - core_->used_bytes) return false;
    core_->used_bytes += bytes;
  }
  *out = Reservation(core_, bytes);
  return true;
}

std::shared_ptr<MemoryBudget::Waiter> MemoryBudget::Reserve(
    uint64_t bytes, std::function<void(Reservation)> granted) {
  assert(bytes <= total_bytes());
  auto waiter = std::make_shared<Waiter>();
  waiter->core_ = core_;
  waiter->bytes_ = bytes;
  if (bytes > 0) {
    std::lock_guard lock(core_->mutex);
    if (!core_->queue.empty() || bytes > core_->total_bytes - core_->used_bytes) {
      waiter->granted_ = std::move(granted);
      waiter->queued_ = true;
      waiter->place_ = core_->queue.insert(core_->queue.end(), waiter);
      return waiter;
    }
    core_->used_bytes += bytes;
  }
  granted(Reservation(core_, bytes));
  return waiter;
}

uint64_t MemoryBudget::total_bytes() const {
  return core_->total_bytes;
}

uint64_t MemoryBudget::used_bytes() const {
  std::lock_guard lock(core_->mutex);
  return core_->used_bytes;
}

uint64_t MemoryBudget::waiting() const {
  std::lock_guard lock(core_->mutex);
  return core_->queue.size();
}

}  // namespace gradclip
