// A connection to a server's memory socket over which one piece of memory is registered; the
// server's PROTOCOL.md has the form of it. The region lives at the server as long as this does.
// Belongs to one thread.
#ifndef GRADCLIP_CLIENT_GRADCLIP_MEMORY_LINK_H_
#define GRADCLIP_CLIENT_GRADCLIP_MEMORY_LINK_H_

#include <sys/types.h>

#include <memory>
#include <span>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradclip/cuda_gradient.h"
#include "server/shm/registration.h"

namespace gradclip {

class MemoryLink {
 public:
  struct Memfd {
    int descriptor = -1;
    uint64_t bytes = 0;
  };
  using Memory = std::variant<Memfd, CudaMemory>;

  // Registers `memory` at the unix socket `path`; read_only: the server may not write. It is handed
  // to nobody but a process of this user, of root or of `trusted`: whoever listens gets the memory.
  // UNAVAILABLE where nobody listens there, PERMISSION_DENIED where it is a stranger or the file
  // system forbids it, INTERNAL where the answer is not the protocol's, DEADLINE_EXCEEDED at the
  // deadline; else the server's own status.
  static absl::StatusOr<std::unique_ptr<MemoryLink>> Register(const std::string& path,
                                                              const Memory& memory, bool read_only,
                                                              std::span<const uid_t> trusted,
                                                              absl::Time deadline);
  ~MemoryLink();
  MemoryLink(const MemoryLink&) = delete;
  MemoryLink& operator=(const MemoryLink&) = delete;

  const RegionToken& token() const { return token_; }
  bool read_only() const { return read_only_; }

  // False once the server has closed it: then the region is gone.
  bool Alive() const;

  // Gives the region up: no later call can use it.
  void GiveUp();
  // The same, and waits until the server has closed its end, which it does once no call uses the
  // region any more. False where it has not after `patience`.
  bool Release(absl::Duration patience);

 private:
  MemoryLink(int socket, bool read_only) : socket_(socket), read_only_(read_only) {}
  absl::Status Exchange(const Memory& memory, absl::Time deadline);

  const int socket_;
  const bool read_only_;
  RegionToken token_{};
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_MEMORY_LINK_H_
