// Refuses calls of TCP connections that have too many, and cuts connections that do what no client
// does that keeps to the rules, at a far greater cost to the server than to themselves.
//
// Context: gRPC 1.51 does not see rapid reset (CVE-2023-44487), calls that are cancelled as fast as
// they are made. It ends a connection, with all its calls, on one stream too many, which may come
// of a client that has kept to the limit: it has heard of the last call's end before the server is
// done with it. And it holds a client that never acknowledges the limit to none. Decision: gRPC is
// given twice the limit, and the calls of each connection are counted here, as they begin: their
// ends come too late, after thousands more. Consequence: connections of unix sockets are not
// guarded, as gRPC does not say of which one a call is; nor are streams of gRPC's own reflection
// service.
//
// Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_CONNECTION_GUARD_H_
#define GRADCLIP_SERVER_RPC_CONNECTION_GUARD_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/observe/limit_hits.h"
#include "server/observe/log.h"

namespace gradclip {

class ConnectionGuard {
 public:
  struct Limits {
    uint64_t streams = 0;            // --max-streams-per-connection
    uint64_t resets_per_second = 0;  // --max-resets
  };
  // Cuts the connection of a peer, as gRPC names it.
  using Cut = std::function<void(const std::string& peer)>;

  ConnectionGuard(Limits limits, Cut cut, Log& log, LimitHits& hits)
      : limits_(limits), cut_(std::move(cut)), log_(log), hits_(hits) {}
  // The last call has ended, on another thread: gRPC keeps the order, and the lock shows it.
  ~ConnectionGuard() { const std::lock_guard lock(mutex_); }

  // What gRPC is given for --max-streams-per-connection.
  static uint64_t TransportStreams(uint64_t streams) { return 2 * streams; }

  // A call from `peer`, as gRPC names it, has begun. RESOURCE_EXHAUSTED: it is one too many.
  absl::Status Begin(const std::string& peer);
  // It has ended, whatever Begin() said: by a reset, which is the peer's cancelling it within a
  // second of its beginning, or otherwise. (Whole jobs that give up cancel older ones.)
  void End(const std::string& peer, bool reset);
  static bool IsReset(bool cancelled_by_peer, std::chrono::steady_clock::time_point begin) {
    return cancelled_by_peer && std::chrono::steady_clock::now() - begin < std::chrono::seconds(1);
  }

 private:
  struct Connection {
    uint64_t in_progress = 0;
    uint64_t resets = 0;  // in this second
    bool cut = false;
  };

  // The flag's name of the limit that the connection is cut for, once; REQUIRES: mutex_.
  absl::string_view CutFor(Connection& connection) const;
  void BeginSecond();  // where the last one is over; REQUIRES: mutex_
  void DoCut(absl::string_view limit, const std::string& peer);

  const Limits limits_;
  const Cut cut_;
  Log& log_;
  LimitHits& hits_;

  std::mutex mutex_;
  // Guarded by mutex_.
  std::unordered_map<std::string, Connection> connections_;
  std::chrono::steady_clock::time_point second_;  // when it began
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_CONNECTION_GUARD_H_
