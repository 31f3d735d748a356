// Notices connections that drop calls as fast as they make them: rapid reset, CVE-2023-44487, which
// costs the server far more than the client and which gRPC 1.51 does not see. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_RESET_GUARD_H_
#define GRADCLIP_SERVER_RPC_RESET_GUARD_H_

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

namespace gradclip {

class ResetGuard {
 public:
  // --max-resets
  explicit ResetGuard(uint64_t resets_per_second) : resets_per_second_(resets_per_second) {}

  // A call from `peer` was dropped before it had sent a message. True, once: it is one too many for
  // this second.
  bool Note(const std::string& peer, std::chrono::steady_clock::time_point now);

 private:
  const uint64_t resets_per_second_;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::chrono::steady_clock::time_point second_;  // where the counted one began
  std::unordered_map<std::string, uint64_t> resets_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_RESET_GUARD_H_
