// What every call is given. Plain data, but for Ended(); all it points to is thread-safe and
// outlives every call.
#ifndef GRADCLIP_SERVER_RPC_ENVIRONMENT_H_
#define GRADCLIP_SERVER_RPC_ENVIRONMENT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "server/backend/backend.h"
#include "server/backend/device.h"
#include "server/group/admission.h"
#include "server/group/store.h"
#include "server/memory/arena.h"
#include "server/memory/budget.h"
#include "server/observe/limit_hits.h"
#include "server/observe/log.h"
#include "server/observe/metrics.h"
#include "server/pool/worker_pool.h"
#include "server/rpc/call_limits.h"
#include "server/rpc/connection_guard.h"
#include "server/security/allow_list.h"
#include "server/security/tokens.h"
#include "server/shm/registry.h"
#include "server/wire/message.h"

namespace gradclip {

class Watchdog;

// The memory of all calls. Shared, because the transport may let go of a reply's last bytes after
// the server has gone.
struct Memory {
  // declaration_bytes: of one caller, half of all.
  Memory(uint64_t gradient_bytes, const BudgetLimits& limits, uint64_t declaration_bytes)
      : gradients(gradient_bytes, limits),
        declarations(2 * declaration_bytes, {.max_bytes_per_caller = declaration_bytes}) {}

  MemoryBudget gradients;     // --memory-budget: gradient bytes kept
  MemoryBudget declarations;  // parsed start messages
  ArenaPool arenas;
};

// Threads for work that waits for a device, by the device's name: where one does not answer,
// others' work goes on.
using DevicePools = std::map<std::string, WorkerPool, std::less<>>;

struct Environment {
  const Backend& backend;
  const std::shared_ptr<Memory> memory;
  Log& log;
  Watchdog& watchdog;
  WorkerPool& pool;
  DevicePools& device_pools;
  const RegionRegistry* regions = nullptr;  // null where there is no memory socket
  Devices* devices = nullptr;               // null where the host does all
  bool host_on_device_error = true;         // --on-gpu-error=cpu

  const Callers* callers = nullptr;          // null where nobody has to show a token
  bool unix_users_need_no_token = false;     // --unix-socket-uids names them
  const Permissions* permissions = nullptr;  // null where everybody may do everything
  CallLimits& call_limits;
  ConnectionGuard& connection_guard;
  LimitHits& limit_hits;

  Store& groups;
  GroupAdmission& group_admission;
  // Whether the connection of a call that has just been cancelled is lost. `peer` and `host` are
  // Peer's address and host.
  std::function<bool(const std::string& peer, const std::string& host)> connection_lost;

  uint64_t max_message_bytes = 0;  // --max-message-bytes
  uint64_t max_call_bytes = 0;     // --max-call-bytes
  DeclarationLimits declaration_limits;
  absl::Duration admission_timeout;        // --admission-timeout
  absl::Duration idle_timeout;             // --idle-timeout
  absl::Duration group_timeout;            // --group-timeout
  absl::Duration group_admission_timeout;  // --group-admission-timeout

  Metrics* metrics = nullptr;  // null without --metrics-listen

  // What is done with each call that has ended.
  void Ended(const CallRecord& call) {
    limit_hits.Count(call.status);
    if (metrics != nullptr) metrics->Count(call);
    log.Call(call);
  }

  std::atomic<uint64_t> next_call_id{1};
  std::atomic<uint64_t> group_calls{0};  // in progress, and with a place in their step
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_ENVIRONMENT_H_
