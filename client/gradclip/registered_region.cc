#include "client/gradclip/registered_region.h"

#include <utility>

#include "absl/time/clock.h"
#include "client/gradclip/client_core.h"

namespace gradclip {

RegisteredRegion::RegisteredRegion(const MemoryLink::Memory& memory,
                                   std::vector<SharedRange> ranges, std::vector<uid_t> trusted,
                                   absl::Duration ask_again_after)
    : memory_(memory),
      ranges_(std::move(ranges)),
      trusted_(std::move(trusted)),
      ask_again_after_(ask_again_after) {}

absl::StatusOr<bool> RegisteredRegion::Ensure(Connection& connection, bool writable,
                                              absl::Time deadline) {
  writable_ = writable_ || writable;
  fresh_ = false;
  const bool same = link_ != nullptr && server_ == connection.address();
  if (same && link_->Alive() && !(writable_ && link_->read_only())) return true;
  Forget();
  if (Refused()) return false;
  server_ = connection.address();
  const absl::StatusOr<ServerInfo> info = AskServerInfo(connection, {deadline});
  if (!info.ok()) return info.status();
  if (info->memory_socket.empty()) {
    return Refuse(absl::FailedPreconditionError(
        "it has no memory socket (--memory-socket=PATH there makes one)"));
  }
  auto registered = MemoryLink::Register(info->memory_socket, memory_, /*read_only=*/!writable_,
                                         trusted_, deadline);
  if (!registered.ok()) {
    const absl::Status& status = registered.status();
    if (absl::IsDeadlineExceeded(status) && absl::Now() >= deadline) return status;
    return Refuse(status);
  }
  link_ = *std::move(registered);
  messages_ = SerialiseRanges(link_->token(), ranges_, info->max_message_bytes);
  refusal_ = absl::OkStatus();
  fresh_ = true;
  return true;
}

bool RegisteredRegion::Forgotten() {
  Forget();
  if (!fresh_) return true;
  Refuse(absl::NotFoundError(
      "it does not know what was registered a moment before at its memory socket's path: another "
      "server listens there, perhaps because this one is on another host or in another container"));
  return false;
}

bool RegisteredRegion::Refused() const {
  return !refusal_.ok() && absl::Now() < ask_again_;
}

void RegisteredRegion::Forget() {
  std::erase_if(given_up_, [](const auto& link) { return !link->Alive(); });
  if (link_ == nullptr) return;
  link_->GiveUp();
  given_up_.push_back(std::move(link_));
}

bool RegisteredRegion::Release(absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  Forget();
  std::erase_if(given_up_, [&](const auto& link) { return link->Release(deadline - absl::Now()); });
  return given_up_.empty();
}

bool RegisteredRegion::Refuse(absl::Status why) {
  refusal_ = std::move(why);
  ask_again_ = absl::Now() + ask_again_after_;
  return false;
}

}  // namespace gradclip
