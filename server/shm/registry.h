// All regions that the server has, by token, and the limits of how many there may be. Thread-safe.
#ifndef GRADCLIP_SERVER_SHM_REGISTRY_H_
#define GRADCLIP_SERVER_SHM_REGISTRY_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "server/backend/device.h"
#include "server/memory/budget.h"
#include "server/shm/region.h"
#include "server/shm/registration.h"

namespace gradclip {

// What counts are regions as long as they are mapped or open: one that was forgotten while a call
// uses it, too.
struct RegionLimits {
  uint64_t max_regions = 1024;             // --max-regions
  uint64_t max_regions_per_peer = 256;     // --max-regions-per-peer; a peer is a user id
  uint64_t max_shared_bytes = 0;           // --max-shared-bytes, of all regions, in whole pages
  uint64_t max_shared_bytes_per_peer = 0;  // --max-shared-bytes-per-peer
};

class RegionRegistry {
 public:
  // Regions of the host's memory are charged to `budget`, in whole pages and to a caller of its
  // user id ("uid:1000"), for as long as they are mapped. devices: whose memory is taken, too;
  // null: none's. Both must outlive the regions, which may outlive the registry.
  RegionRegistry(const RegionLimits& limits, MemoryBudget& budget, Devices* devices = nullptr);
  ~RegionRegistry();

  RegionRegistry(const RegionRegistry&) = delete;
  RegionRegistry& operator=(const RegionRegistry&) = delete;

  // Maps `memfd`, which stays the caller's, for the user `uid`. Errors: Region::Map()'s;
  // RESOURCE_EXHAUSTED over a limit or the budget, naming the numbers and the flag.
  absl::StatusOr<RegionToken> Register(uid_t uid, int memfd, uint64_t length, bool read_only);
  // Opens memory of a device. Errors: Devices::OpenMemory()'s; UNIMPLEMENTED without devices;
  // RESOURCE_EXHAUSTED over a limit.
  absl::StatusOr<RegionToken> Register(uid_t uid, const ExportedMemory& memory, bool read_only);

  // The region stays mapped, or open, until the last call that holds it has let go: what is
  // returned expires when it no longer is. No effect, and nothing, where it is not there. Where
  // nobody holds it, those who wait for the budget may be granted on this thread.
  std::weak_ptr<const void> Forget(const RegionToken& token);

  // Null where no region has that token. Whoever lets go last unmaps, and may grant others budget:
  // hold no lock that they take.
  std::shared_ptr<Region> Find(const RegionToken& token) const;

  uint64_t regions() const;  // that can be found
  // Mapped, in whole pages, or open; those forgotten but still in use included.
  uint64_t bytes() const;

 private:
  class Counts;
  struct Charged;

  // The region, once it is there, keeps what it is charged for.
  absl::StatusOr<std::shared_ptr<Charged>> Charge(uid_t uid, uint64_t bytes);
  absl::StatusOr<RegionToken> Add(std::shared_ptr<Charged> charged);

  MemoryBudget& budget_;
  Devices* const devices_;
  const std::shared_ptr<Counts> counts_;
  mutable std::mutex mutex_;
  std::map<RegionToken, std::shared_ptr<Charged>> by_token_;  // guarded by mutex_
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_REGISTRY_H_
