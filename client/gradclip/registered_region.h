// The memory of a gradient as the servers that its calls meet know it: registered with the first
// call, and again where the server has gone, has forgotten it or is another. Belongs to one thread.
#ifndef GRADCLIP_CLIENT_GRADCLIP_REGISTERED_REGION_H_
#define GRADCLIP_CLIENT_GRADCLIP_REGISTERED_REGION_H_

#include <sys/types.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/gradclip/connection.h"
#include "client/gradclip/memory_link.h"
#include "client/gradclip/shared_layout.h"
#include "client/gradclip/shared_ranges.h"

namespace gradclip {

class RegisteredRegion {
 public:
  // What `memory` names must outlive it; `ranges` are the gradient's in it. trusted: as of
  // MemoryLink::Register. A refusal stands for `ask_again_after`.
  RegisteredRegion(const MemoryLink::Memory& memory, std::vector<SharedRange> ranges,
                   std::vector<uid_t> trusted, absl::Duration ask_again_after);

  // Registers the memory with the server of `connection` where it is not; for writing where
  // `writable`, and from then on. False where the server refuses, or has refused a moment ago, as
  // refusal() says. An error ends the call.
  absl::StatusOr<bool> Ensure(Connection& connection, bool writable, absl::Time deadline);

  // The server of the call did not know the region. True where it is worth to Ensure() again: it
  // was registered for a call before. Else another server listens at the memory socket: refused.
  bool Forgotten();

  // Gives the region up: the next call registers anew.
  void Forget();

  // Whether a refusal stands, so that no call need ask.
  bool Refused() const;
  const absl::Status& refusal() const { return refusal_; }
  const std::string& refused_by() const { return server_; }  // its address

  // Forget(), and waits until no call uses this region, nor one that was given up before; false
  // where one may after `patience`.
  bool Release(absl::Duration patience);

  // What a call sends. REQUIRES: Ensure() was true.
  std::span<const RangesMessage> messages() const { return messages_; }

 private:
  bool Refuse(absl::Status why);

  const MemoryLink::Memory memory_;
  const std::vector<SharedRange> ranges_;
  const std::vector<uid_t> trusted_;
  const absl::Duration ask_again_after_;
  bool writable_ = false;  // asked for by a call
  bool fresh_ = false;     // registered for this call
  std::string server_;     // the address of the server that link_, or refusal_, is of
  std::unique_ptr<MemoryLink> link_;
  // Of regions that were given up, as long as a call that has timed out here may use them there.
  std::vector<std::unique_ptr<MemoryLink>> given_up_;
  std::vector<RangesMessage> messages_;
  absl::Status refusal_;  // OK: none stands
  absl::Time ask_again_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_REGISTERED_REGION_H_
