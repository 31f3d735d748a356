#include "server/memory/budget.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace gradclip {

// Guarded by the core's mutex.
struct MemoryBudget::Account {
  const std::string* caller = nullptr;  // the key in `accounts`
  uint64_t used_bytes = 0;
  std::list<std::shared_ptr<Waiter>> queue;
  bool takes_turns = false;
  std::list<Account*>::iterator turn;  // where it takes turns
};

struct MemoryBudget::Core : std::enable_shared_from_this<MemoryBudget::Core> {
  // Decided under the lock, but still to be told.
  struct Grant {
    std::function<void(Reservation)> granted;
    Reservation reservation;
  };

  Core(uint64_t total, const BudgetLimits& given) : total_bytes(total), limits(given) {
    limits.max_bytes_per_caller = std::min(limits.max_bytes_per_caller, total);
  }

  // The methods up to GrantWaiters() REQUIRE that `mutex` is held.

  // Null: the caller holds nothing and waits for nothing.
  const Account* Find(std::string_view caller) const {
    const auto found = accounts.find(caller);
    return found == accounts.end() ? nullptr : &found->second;
  }

  // To be followed by CloseIfIdle() where nothing is done with it.
  Account& Open(std::string_view caller) {
    auto place = accounts.lower_bound(caller);
    if (place == accounts.end() || place->first != caller) {
      place = accounts.try_emplace(place, std::string(caller));
      place->second.caller = &place->first;
    }
    return place->second;
  }

  void CloseIfIdle(const Account& account) {
    if (account.used_bytes == 0 && account.queue.empty()) {
      accounts.erase(accounts.find(*account.caller));
    }
  }

  bool IsWithinLimit(const Account& account, uint64_t bytes) const {
    return bytes <= limits.max_bytes_per_caller - account.used_bytes;
  }

  // Grants what need not wait.
  bool Take(Account& account, uint64_t bytes) {
    if (!turns.empty() || !account.queue.empty() || !IsWithinLimit(account, bytes) ||
        bytes > total_bytes - used_bytes) {
      return false;
    }
    account.used_bytes += bytes;
    used_bytes += bytes;
    return true;
  }

  // To be called whenever an account's first waiter or its bytes have changed.
  void UpdateTurn(Account& account) {
    const bool takes_turns =
        !account.queue.empty() && IsWithinLimit(account, account.queue.front()->bytes_);
    if (takes_turns == account.takes_turns) return;
    account.takes_turns = takes_turns;
    if (takes_turns) {
      account.turn = turns.insert(turns.end(), &account);
    } else {
      turns.erase(account.turn);
    }
  }

  void EndTurn(Account& account) {
    turns.splice(turns.end(), turns, account.turn);
    UpdateTurn(account);
  }

  // Grants in turns while there is room.
  std::vector<Grant> GrantWaiters() {
    std::vector<Grant> grants;
    while (!turns.empty()) {
      Account& account = *turns.front();
      Waiter& waiter = *account.queue.front();
      if (waiter.bytes_ > total_bytes - used_bytes) break;
      used_bytes += waiter.bytes_;
      account.used_bytes += waiter.bytes_;
      waiter.queued_ = false;
      waiter.account_ = nullptr;
      grants.push_back(
          {std::move(waiter.granted_), Reservation(shared_from_this(), &account, waiter.bytes_)});
      waiter.granted_ = nullptr;
      account.queue.pop_front();
      --waiting;
      EndTurn(account);
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

  void Give(Account& account, uint64_t bytes) {
    std::vector<Grant> grants;
    {
      std::lock_guard lock(mutex);
      assert(bytes <= account.used_bytes && account.used_bytes <= used_bytes);
      account.used_bytes -= bytes;
      used_bytes -= bytes;
      UpdateTurn(account);
      CloseIfIdle(account);
      grants = GrantWaiters();
    }
    Tell(std::move(grants));
  }

  const uint64_t total_bytes;
  BudgetLimits limits;  // const from the constructor on
  std::mutex mutex;
  // Guarded by `mutex`.
  uint64_t used_bytes = 0;
  uint64_t waiting = 0;
  std::map<std::string, Account, std::less<>> accounts;  // of callers that hold something or wait
  std::list<Account*>
      turns;  // the accounts whose first waiter is within their limit, the next first
};

MemoryBudget::MemoryBudget(uint64_t total_bytes, const BudgetLimits& limits)
    : core_(std::make_shared<Core>(total_bytes, limits)) {}

MemoryBudget::~MemoryBudget() {
  assert(used_bytes() == 0);
  assert(waiting() == 0);
}

MemoryBudget::Reservation::Reservation(std::shared_ptr<Core> core, Account* account, uint64_t bytes)
    : core_(std::move(core)), account_(account), bytes_(bytes) {}

MemoryBudget::Reservation::Reservation(Reservation&& other) noexcept
    : core_(std::move(other.core_)),
      account_(std::exchange(other.account_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

MemoryBudget::Reservation& MemoryBudget::Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    core_ = std::move(other.core_);
    account_ = std::exchange(other.account_, nullptr);
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
  Account* const account = std::exchange(account_, nullptr);
  const uint64_t bytes = std::exchange(bytes_, 0);
  core_ = nullptr;
  if (bytes > 0) core->Give(*account, bytes);
}

void MemoryBudget::Reservation::Absorb(Reservation&& other) {
  assert(this != &other);
  assert(bytes_ == 0 || other.bytes_ == 0 || account_ == other.account_);
  if (other.bytes_ > 0) {
    core_ = std::move(other.core_);
    account_ = other.account_;
  }
  bytes_ += std::exchange(other.bytes_, 0);
  other.core_ = nullptr;
  other.account_ = nullptr;
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
    Account& account = *std::exchange(account_, nullptr);
    const bool had_the_turn = place_ == account.queue.begin() && account.takes_turns &&
                              account.turn == core_->turns.begin();
    // The queue's reference goes with the place; the caller's keeps this object.
    const std::shared_ptr<Waiter> self = std::move(*place_);
    account.queue.erase(place_);
    --core_->waiting;
    if (had_the_turn) {
      core_->EndTurn(account);
    } else {
      core_->UpdateTurn(account);
    }
    core_->CloseIfIdle(account);
    grants = core_->GrantWaiters();
  }
  Core::Tell(std::move(grants));
  return true;
}

bool MemoryBudget::TryReserve(std::string_view caller, uint64_t bytes, Reservation* out) {
  *out = Reservation();
  Account* account = nullptr;
  if (bytes > 0) {
    std::lock_guard lock(core_->mutex);
    account = &core_->Open(caller);
    if (!core_->Take(*account, bytes)) {
      core_->CloseIfIdle(*account);
      return false;
    }
  }
  *out = Reservation(core_, account, bytes);
  return true;
}

MemoryBudget::Admission MemoryBudget::Reserve(std::string_view caller, uint64_t bytes,
                                              std::function<void(Reservation)> granted) {
  assert(bytes <= limits().max_bytes_per_caller);
  auto waiter = std::make_shared<Waiter>();
  waiter->core_ = core_;
  waiter->bytes_ = bytes;
  Account* account = nullptr;
  if (bytes > 0) {
    std::lock_guard lock(core_->mutex);
    account = &core_->Open(caller);
    if (!core_->Take(*account, bytes)) {
      std::optional<QueueFull> refused;
      if (account->queue.size() >= core_->limits.max_waiting_per_caller) {
        refused = QueueFull::kMaxWaitingPerCaller;
      } else if (core_->waiting >= core_->limits.max_waiting) {
        refused = QueueFull::kMaxWaiting;
      }
      if (refused.has_value()) {
        core_->CloseIfIdle(*account);
        return {.waiter = nullptr, .refused = refused};
      }
      waiter->granted_ = std::move(granted);
      waiter->queued_ = true;
      waiter->account_ = account;
      waiter->place_ = account->queue.insert(account->queue.end(), waiter);
      ++core_->waiting;
      core_->UpdateTurn(*account);  // grants nothing: it does not fit, or others come first
      return {.waiter = std::move(waiter)};
    }
  }
  granted(Reservation(core_, account, bytes));
  return {.waiter = std::move(waiter)};
}

uint64_t MemoryBudget::total_bytes() const {
  return core_->total_bytes;
}

const BudgetLimits& MemoryBudget::limits() const {
  return core_->limits;
}

uint64_t MemoryBudget::used_bytes() const {
  std::lock_guard lock(core_->mutex);
  return core_->used_bytes;
}

uint64_t MemoryBudget::used_bytes(std::string_view caller) const {
  std::lock_guard lock(core_->mutex);
  const Account* const account = core_->Find(caller);
  return account == nullptr ? 0 : account->used_bytes;
}

uint64_t MemoryBudget::waiting() const {
  std::lock_guard lock(core_->mutex);
  return core_->waiting;
}

uint64_t MemoryBudget::waiting(std::string_view caller) const {
  std::lock_guard lock(core_->mutex);
  const Account* const account = core_->Find(caller);
  return account == nullptr ? 0 : account->queue.size();
}

uint64_t MemoryBudget::callers() const {
  std::lock_guard lock(core_->mutex);
  return core_->accounts.size();
}

}  // namespace gradclip
