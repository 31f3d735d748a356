#include "server/shm/page_faults.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

namespace gradclip {

// One guarded range, as the signal handler reads it while other threads guard and unguard others.
//
// `changes` is odd while the fields change. A handler that sees it odd, or changed once it has read
// the fields, passes the slot over: the range in which its own thread faulted is in use, so that
// one does not change. All accesses have one order (seq_cst); guarding is rare, and so are faults.
struct GuardedRange {
  std::atomic<uint64_t> changes = 0;
  std::atomic<uintptr_t> begin = 0;
  std::atomic<uintptr_t> end = 0;  // equal to begin: free
  std::atomic<int> protection = 0;
  std::atomic<std::atomic<bool>*> broken = nullptr;

  std::atomic<int> replaced = 0;      // pages so far
  GuardedRange* next_free = nullptr;  // guarded by `mutex`
};

namespace {

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uintptr_t>::is_always_lock_free);
static_assert(std::atomic<int>::is_always_lock_free);
static_assert(std::atomic<std::atomic<bool>*>::is_always_lock_free);
static_assert(std::atomic<bool>::is_always_lock_free);

// Pages of a range that are replaced one by one; the next takes the whole range with it. Each
// splits a mapping in three, and a process that has the most it may have (vm.max_map_count, 65,530)
// can replace no more. The whole range at once would need memory for all of it, if it is written.
constexpr int kMostLonePages = 16;

// Slots in blocks that are added where they run out and never freed, since a handler may be reading
// any of them. The first holds what the default limit of regions needs.
struct Block {
  std::array<GuardedRange, 2048> slots;
  std::atomic<Block*> next = nullptr;
};

// All of this is there before any code runs and after all has.
constinit Block first_block;
constinit std::mutex mutex;
constinit GuardedRange* free_slots = nullptr;  // guarded by `mutex`
constinit Block* last_block = nullptr;         // guarded by `mutex`; null until the first guard

// Written before the handler is installed.
constinit struct sigaction previous_action = {};
constinit uintptr_t page_bytes = 0;

void* MapZeros(uintptr_t begin, uintptr_t bytes, int protection) {
  // Not mmap(): sanitizers replace it by a function that is not for signal handlers.
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, begin, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

// Whether `address` lies in a guarded range and can be touched again. For the signal handler:
// neither locks nor allocates.
bool Replace(uintptr_t address) {
  for (Block* block = &first_block; block != nullptr; block = block->next) {
    for (GuardedRange& slot : block->slots) {
      const uint64_t changes = slot.changes;
      if (changes % 2 != 0) continue;
      const uintptr_t begin = slot.begin;
      const uintptr_t end = slot.end;
      const int protection = slot.protection;
      std::atomic<bool>* const broken = slot.broken;
      if (address < begin || address >= end || slot.changes != changes) continue;
      // Before anyone can read a zero that is not the owner's.
      broken->store(true);
      if (slot.replaced++ < kMostLonePages &&
          MapZeros(address - address % page_bytes, page_bytes, protection) != MAP_FAILED) {
        return true;
      }
      return MapZeros(begin, end - begin, protection) != MAP_FAILED;
    }
  }
  return false;
}

void OnBusError(int signal, siginfo_t* info, void*) {
  const int saved_errno = errno;
  // The others are alignment, which a new page would not mend, and signals that processes send,
  // which come without an address.
  const bool names_page = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR ||
                          info->si_code == BUS_MCEERR_AO;
  if (!names_page || !Replace(reinterpret_cast<uintptr_t>(info->si_addr))) {
    sigaction(SIGBUS, &previous_action, nullptr);
    // A fault recurs; what was only told does not.
    if (info->si_code <= 0 || info->si_code == BUS_MCEERR_AO) raise(signal);
  }
  errno = saved_errno;
}

// REQUIRES: `mutex` is held.
void AddFreeSlots(Block& block) {
  for (size_t i = block.slots.size(); i-- > 0;) {
    block.slots[i].next_free = free_slots;
    free_slots = &block.slots[i];
  }
  last_block = &block;
}

// REQUIRES: `mutex` is held.
void Install() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  sigaction(SIGBUS, nullptr, &previous_action);
  struct sigaction action = {};
  action.sa_sigaction = &OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
  AddFreeSlots(first_block);
}

GuardedRange* TakeSlot() {
  const std::lock_guard lock(mutex);
  if (last_block == nullptr) Install();
  if (free_slots == nullptr) {
    auto* block = new Block;
    last_block->next = block;
    AddFreeSlots(*block);
  }
  GuardedRange* slot = free_slots;
  free_slots = slot->next_free;
  return slot;
}

void Set(GuardedRange& slot, uintptr_t begin, uintptr_t end, int protection,
         std::atomic<bool>* broken) {
  ++slot.changes;
  slot.begin = begin;
  slot.end = end;
  slot.protection = protection;
  slot.broken = broken;
  slot.replaced = 0;
  ++slot.changes;
}

}  // namespace

PageFaultGuard::PageFaultGuard(std::byte* begin, size_t bytes, int protection,
                               std::atomic<bool>& broken)
    : slot_(TakeSlot()) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  Set(*slot_, address, address + bytes, protection, &broken);
}

PageFaultGuard::~PageFaultGuard() {
  Set(*slot_, 0, 0, 0, nullptr);
  const std::lock_guard lock(mutex);
  slot_->next_free = free_slots;
  free_slots = slot_;
}

}  // namespace gradclip
