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
  // --memory-socket; 1 to 107 bytes.
  std::string path;

  // --memory-socket-uids: users that may connect. None given: the one that this process runs as.
  std::vector<uid_t> uids;

  // --max-pending-registrations: connections that have no region yet, at once.
  uint64_t max_pending_registrations = 64;

  // --idle-timeout: how long a connection may have no region, how long the bytes of a registration
  // may take from the first to the last, and how long an answer may be left unread.
  absl::Duration idle_timeout = absl::Seconds(60);
};

class MemorySocket {
 public:
  // Listens at options.path. A socket left behind there by a server that has gone is replaced.
  // UNAVAILABLE where the path is taken, in a folder that is not there, or not permitted. `regions`
  // and `log` must outlive it.
  static absl::StatusOr<std::unique_ptr<MemorySocket>> Listen(MemorySocketOptions options,
                                                              RegionRegistry& regions, Log& log);
  // Closes all connections, forgets their regions and removes the socket. Waits for a registration
  // that is being carried out.
  ~MemorySocket();

  MemorySocket(const MemorySocket&) = delete;
  MemorySocket& operator=(const MemorySocket&) = delete;

  uint64_t connections() const;

 private:
  class Impl;
  explicit MemorySocket(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_MEMORY_SOCKET_H_
