// One client's connection to the memory socket, and the regions that live with it. Not thread-safe:
// for the socket's thread alone.
#ifndef GRADCLIP_SERVER_SHM_MEMORY_CONNECTION_H_
#define GRADCLIP_SERVER_SHM_MEMORY_CONNECTION_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/net/file_descriptor.h"
#include "server/observe/log.h"
#include "server/shm/registration.h"
#include "server/shm/registration_reader.h"
#include "server/shm/registry.h"

namespace gradclip {

// The process at a connection's other end, as the system knows it (SO_PEERCRED).
struct MemoryPeer {
  uid_t uid = 0;
  pid_t pid = 0;
};

// The bytes of an answer. Messages are cut at RegistrationAnswer::kMostMessageBytes.
std::string AnswerBytes(const absl::Status& status, const RegionToken& token = {});

class MemoryConnection {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  // It may go `timeout` long without a region, with a registration that is not complete or with an
  // answer that is not read. `regions` and `log` must outlive it.
  MemoryConnection(FileDescriptor socket, MemoryPeer peer, Duration timeout, Time now,
                   RegionRegistry& regions, Log& log);
  ~MemoryConnection();  // forgets its regions

  MemoryConnection(const MemoryConnection&) = delete;
  MemoryConnection& operator=(const MemoryConnection&) = delete;

  int socket() const { return socket_.get(); }
  short events() const;  // to poll() for
  bool has_region() const { return !tokens_.empty() || !in_use_.empty(); }

  // Does what can be done without waiting for the peer; registering takes as long as
  // Region::Map() or Devices::OpenMemory(). False: it is over.
  bool Advance(Time now);

  // When it has taken too long, where nothing comes until then; while releasing(), when to look
  // again.
  std::optional<Time> deadline() const { return deadline_; }

  // The peer has half-closed, and waits until no call uses its regions any more.
  bool releasing() const { return !in_use_.empty(); }

  // Why it is over, for the log.
  void set_ending(std::string_view reason) { ending_ = std::string(reason); }

 private:
  // Carries out the registration that is complete, and has its answer ready.
  void Serve();
  absl::StatusOr<RegionToken> Register();
  // Sends what the peer has room for. False: the connection is over.
  bool SendAnswer();
  // Forgets the regions. False: no call uses any of them.
  bool Release(Time now);

  const FileDescriptor socket_;
  const MemoryPeer peer_;
  const Duration timeout_;
  RegionRegistry& regions_;
  Log& log_;

  std::optional<Time> deadline_;
  RegistrationReader reader_;
  std::string unsent_;        // of the answer; nothing is read until it is sent
  bool last_answer_ = false;  // the connection ends with it
  std::vector<RegionToken> tokens_;
  std::vector<std::weak_ptr<const void>> in_use_;  // regions, forgotten, but perhaps not by calls
  uint64_t registered_ = 0;                        // regions
  uint64_t bytes_ = 0;                             // of the regions
  std::string ending_ = "the server stops";
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_SHM_MEMORY_CONNECTION_H_
