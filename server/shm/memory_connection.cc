#include "server/shm/memory_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

// How often a peer that waits for its memory has it looked for; calls take about as long.
constexpr std::chrono::milliseconds kReleaseInterval(5);

// Both directions are closed: nobody waits there any more.
bool HungUp(int socket) {
  pollfd polled = {socket, 0, 0};
  return poll(&polled, 1, 0) > 0;
}

bool IsReadOnly(const Registration& registration) {
  return (registration.flags & Registration::kReadOnly) != 0;
}

}  // namespace

std::string AnswerBytes(const absl::Status& status, const RegionToken& token) {
  const absl::string_view message =
      status.message().substr(0, RegistrationAnswer::kMostMessageBytes);
  const auto head =
      ToBytes(RegistrationAnswer{.status = static_cast<uint32_t>(status.code()),
                                 .message_bytes = static_cast<uint32_t>(message.size()),
                                 .token = token});
  std::string answer(reinterpret_cast<const char*>(head.data()), head.size());
  answer.append(message.data(), message.size());
  return answer;
}

MemoryConnection::MemoryConnection(FileDescriptor socket, MemoryPeer peer, Duration timeout,
                                   Time now, RegionRegistry& regions, Log& log)
    : socket_(std::move(socket)),
      peer_(peer),
      timeout_(timeout),
      regions_(regions),
      log_(log),
      deadline_(now + timeout) {}

MemoryConnection::~MemoryConnection() {
  for (const RegionToken& token : tokens_) regions_.Forget(token);
  log_.Info("memory connection closed", {{"uid", peer_.uid},
                                         {"pid", peer_.pid},
                                         {"regions", registered_},
                                         {"bytes", bytes_},
                                         {"reason", ending_}});
}

short MemoryConnection::events() const {
  if (releasing()) return 0;
  return unsent_.empty() ? POLLIN : POLLOUT;
}

bool MemoryConnection::Advance(Time now) {
  if (releasing()) return Release(now);
  if (unsent_.empty()) {
    switch (reader_.Read(socket())) {
      case RegistrationReader::Progress::kWaiting:
        break;
      case RegistrationReader::Progress::kComplete:
        Serve();
        break;
      case RegistrationReader::Progress::kEnded:
        set_ending(reader_.ending());
        return Release(now);
    }
  }
  if (!unsent_.empty() && !SendAnswer()) return false;
  if (!reader_.begun() && unsent_.empty() && has_region()) {
    deadline_.reset();
  } else if (!deadline_.has_value()) {
    deadline_ = now + timeout_;
  }
  return true;
}

bool MemoryConnection::Release(Time now) {
  for (const RegionToken& token : tokens_) in_use_.push_back(regions_.Forget(token));
  tokens_.clear();
  std::erase_if(in_use_, [](const auto& region) { return region.expired(); });
  deadline_ = now + kReleaseInterval;
  return releasing() && !HungUp(socket());
}

void MemoryConnection::Serve() {
  const Registration registration = reader_.registration();
  const bool of_cuda = registration.kind == Registration::kCudaMemory;
  RegionToken token{};
  absl::Status status = reader_.CheckBytes();
  last_answer_ = absl::IsInvalidArgument(status);
  if (status.ok()) status = reader_.CheckDescriptor();
  if (status.ok()) {
    const absl::StatusOr<RegionToken> registered = Register();
    status = registered.status();
    if (registered.ok()) {
      token = *registered;
      tokens_.push_back(token);
      ++registered_;
      bytes_ += registration.length;
    }
  }
  reader_.Reset();  // closes the memfd: the mapping holds its memory
  if (status.ok()) {
    log_.Info("memory registered", {{"uid", peer_.uid},
                                    {"pid", peer_.pid},
                                    {"memory", of_cuda ? "CUDA" : "memfd"},
                                    {"bytes", registration.length},
                                    {"read_only", IsReadOnly(registration)}});
  } else {
    log_.Info("memory registration refused", {{"uid", peer_.uid},
                                              {"pid", peer_.pid},
                                              {"status", absl::StatusCodeToString(status.code())},
                                              {"reason", status.message()}});
  }
  unsent_ = AnswerBytes(status, token);
}

absl::StatusOr<RegionToken> MemoryConnection::Register() {
  const Registration registration = reader_.registration();
  const bool read_only = IsReadOnly(registration);
  if (registration.kind == Registration::kMemfd) {
    return regions_.Register(peer_.uid, reader_.memfd(), registration.length, read_only);
  }
  const CudaAllocation allocation = reader_.cuda_allocation();
  return regions_.Register(peer_.uid,
                           {.device = allocation.uuid,
                            .allocation = allocation.handle,
                            .offset = registration.offset,
                            .length = registration.length},
                           read_only);
}

bool MemoryConnection::SendAnswer() {
  while (!unsent_.empty()) {
    const ssize_t count =
        send(socket(), unsent_.data(), unsent_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return true;
      set_ending(strerror(errno));
      return false;
    }
    unsent_.erase(0, static_cast<size_t>(count));
  }
  if (last_answer_) set_ending("what it sent is no registration");
  return !last_answer_;
}

}  // namespace gradclip
