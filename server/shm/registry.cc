#include "server/shm/registry.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/shm/guarded_mapping.h"

namespace gradclip {
namespace {

absl::StatusOr<RegionToken> RandomToken() {
  RegionToken token;
  // The system's own source of keys. So few bytes come at once or, without it, not at all.
  if (getentropy(token.data(), token.size()) != 0) {
    return absl::InternalError(absl::StrCat("no random bytes for a token: ", strerror(errno)));
  }
  return token;
}

}  // namespace

// How much is mapped, by peer and in all. Shared with the regions, so that each can be taken off
// when it goes, be that later than the registry. Thread-safe.
class RegionRegistry::Counts {
 public:
  explicit Counts(const RegionLimits& limits) : limits_(limits) {}

  // Adds a region of `bytes`, where that is within all limits.
  absl::Status Add(uid_t uid, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = by_peer_.find(uid);
    Count peer = found == by_peer_.end() ? Count() : found->second;
    const std::string user = absl::StrCat("user ", uid);
    absl::Status status =
        Add(user, limits_.max_regions_per_peer, "--max-regions-per-peer",
            limits_.max_shared_bytes_per_peer, "--max-shared-bytes-per-peer", bytes, peer);
    Count all = all_;
    if (status.ok()) {
      status = Add("the server", limits_.max_regions, "--max-regions", limits_.max_shared_bytes,
                   "--max-shared-bytes", bytes, all);
    }
    if (!status.ok()) return status;
    by_peer_[uid] = peer;
    all_ = all;
    return status;
  }

  void Remove(uid_t uid, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto peer = by_peer_.find(uid);
    --peer->second.regions;
    peer->second.bytes -= bytes;
    if (peer->second.regions == 0) by_peer_.erase(peer);
    --all_.regions;
    all_.bytes -= bytes;
  }

  uint64_t bytes() const {
    const std::lock_guard lock(mutex_);
    return all_.bytes;
  }

 private:
  struct Count {
    uint64_t regions = 0;
    uint64_t bytes = 0;
  };

  static absl::Status Add(absl::string_view who, uint64_t max_regions,
                          absl::string_view regions_flag, uint64_t max_bytes,
                          absl::string_view bytes_flag, uint64_t bytes, Count& count) {
    if (count.regions >= max_regions) {
      return absl::ResourceExhaustedError(
          absl::StrCat(who, " has ", count.regions, " regions, of at most ", max_regions, " (",
                       regions_flag, "): close connections whose memory is no longer used"));
    }
    if (bytes > max_bytes || count.bytes > max_bytes - bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a region of ", bytes, " bytes beside the ", count.bytes, " that ", who,
                       " has is over the limit of ", max_bytes, " (", bytes_flag,
                       "): register less, or close connections whose memory is no longer used"));
    }
    ++count.regions;
    count.bytes += bytes;
    return absl::OkStatus();
  }

  const RegionLimits limits_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Count all_;
  std::map<uid_t, Count> by_peer_;  // of those that have regions
};

// A region and what it is charged for. The members go in the order that matters: first the memory,
// then what says that it is held.
struct RegionRegistry::Charged {
  // Goes last: when the region has gone and is charged for no more.
  std::shared_ptr<const void> all = std::make_shared<char>();

  ~Charged() {
    region.reset();
    if (counts != nullptr) counts->Remove(uid, bytes);
  }

  MemoryBudget::Reservation reservation;
  std::shared_ptr<Counts> counts;  // null: not counted
  uid_t uid = 0;
  uint64_t bytes = 0;
  std::shared_ptr<Region> region;
};

RegionRegistry::RegionRegistry(const RegionLimits& limits, MemoryBudget& budget, Devices* devices)
    : budget_(budget), devices_(devices), counts_(std::make_shared<Counts>(limits)) {}

RegionRegistry::~RegionRegistry() = default;

absl::StatusOr<RegionToken> RegionRegistry::Register(uid_t uid, int memfd, uint64_t length,
                                                     bool read_only) {
  // A wrong registration is told so before it is told of limits.
  if (absl::Status status = Region::Check(memfd, length, read_only); !status.ok()) return status;

  // Everything is charged before the system is asked for a page: of a memfd that has none yet, it
  // would all be this process's.
  absl::StatusOr<std::shared_ptr<Charged>> charging = Charge(uid, WholePages(length));
  if (!charging.ok()) return charging.status();
  const std::shared_ptr<Charged> charged = *std::move(charging);
  // A user is a caller of the budget's, beside those that tokens and certificates name.
  const std::string caller = absl::StrCat("uid:", uid);
  if (!budget_.TryReserve(caller, charged->bytes, &charged->reservation)) {
    const uint64_t most = budget_.limits().max_bytes_per_caller;
    const uint64_t own = budget_.used_bytes(caller);
    if (most < budget_.total_bytes() && charged->bytes > most - own) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a region of ", charged->bytes, " bytes beside the ", own, " that user ",
                       uid, " has is over the limit of ", most,
                       " (--max-bytes-per-caller): register less, or close "
                       "connections whose memory is no longer used"));
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "a region of ", charged->bytes, " bytes does not fit beside the ", budget_.used_bytes(),
        " of ", budget_.total_bytes(),
        " bytes that are used or waited for (--memory-budget): register less, or try again later"));
  }
  absl::StatusOr<std::shared_ptr<Region>> region = Region::Map(memfd, length, read_only);
  if (!region.ok()) return region.status();
  charged->region = *std::move(region);
  return Add(charged);
}

absl::StatusOr<RegionToken> RegionRegistry::Register(uid_t uid, const ExportedMemory& memory,
                                                     bool read_only) {
  if (devices_ == nullptr) {
    return absl::UnimplementedError(
        "this server takes no CUDA memory: that wants --allow-cuda-ipc there, and a GPU that it "
        "uses (`gradclip info` says why it uses none)");
  }
  const absl::StatusOr<std::shared_ptr<Charged>> charged = Charge(uid, memory.length);
  if (!charged.ok()) return charged.status();
  absl::StatusOr<std::unique_ptr<DeviceMemory>> open = devices_->OpenMemory(memory);
  if (!open.ok()) return open.status();
  (*charged)->region = Region::OnDevice(*std::move(open), memory.length, read_only);
  return Add(*charged);
}

absl::StatusOr<std::shared_ptr<RegionRegistry::Charged>> RegionRegistry::Charge(uid_t uid,
                                                                                uint64_t bytes) {
  const auto charged = std::make_shared<Charged>();
  charged->uid = uid;
  charged->bytes = bytes;
  if (absl::Status status = counts_->Add(uid, bytes); !status.ok()) return status;
  charged->counts = counts_;
  return charged;
}

absl::StatusOr<RegionToken> RegionRegistry::Add(std::shared_ptr<Charged> charged) {
  absl::StatusOr<RegionToken> token = RandomToken();
  if (!token.ok()) return token;
  const std::lock_guard lock(mutex_);
  by_token_.emplace(*token, std::move(charged));
  return token;
}

std::weak_ptr<const void> RegionRegistry::Forget(const RegionToken& token) {
  decltype(by_token_)::node_type last;  // goes after the lock: unmapping takes a while
  const std::lock_guard lock(mutex_);
  last = by_token_.extract(token);
  return last.empty() ? std::weak_ptr<const void>() : last.mapped()->all;
}

std::shared_ptr<Region> RegionRegistry::Find(const RegionToken& token) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_token_.find(token);
  if (found == by_token_.end()) return nullptr;
  return std::shared_ptr<Region>(found->second, found->second->region.get());
}

uint64_t RegionRegistry::regions() const {
  const std::lock_guard lock(mutex_);
  return by_token_.size();
}

uint64_t RegionRegistry::bytes() const {
  return counts_->bytes();
}

}  // namespace gradclip
