// The unix socket over which clients register memory: see PROTOCOL.md. One thread of its own; the
// methods are thread-safe.
#ifndef GRADCLIP_SERVER_SHM_MEMORY_SOCKET_H_
#define GRADCLIP_SERVER_SHM_MEMORY_SOCKET_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/observe/log.h"
#include "server/shm/registry.h"

namespace gradclip {

struct MemorySocketOptions {
  std::string path;                           // --memory-socket
  std::vector<uid_t> uids;                    // --memory-socket-uids
  uint64_t max_pending_registrations = 64;    // --max-pending-registrations
  absl::Duration idle_timeout;                // --idle-timeout: of a registration begun, or not yet
};

class MemorySocket {
 public:
  // Listens at options.path. A socket left behind there by a server that has gone is replaced.
  // UNAVAILABLE where the path is taken, in a folder that is not there, or not permitted. `regions`
  // and `log` must outlive it.
  static absl::StatusOr<std::unique_ptr<MemorySocket>> Listen(MemorySocketOptions options,
                                                              RegionRegistry& regions, Log& log);
  // Closes all connections, forgets their regions and removes the socket.
  ~MemorySocket();

  uint64_t connections() const;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_MEMORY_SOCKET_H_
