#include "server/shm/memory_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/net/file_descriptor.h"
#include "server/net/stop_signal.h"
#include "server/net/unix_socket.h"
#include "server/shm/memory_connection.h"

namespace gradclip {
namespace {

using Time = MemoryConnection::Time;

// How long nobody is accepted once the process has run out of descriptors: the ones who wait would
// have the thread run in circles.
constexpr std::chrono::milliseconds kOutOfDescriptorsPause(100);

// Accepted in one go, so that those accepted before get their turn.
constexpr int kAcceptedAtOnce = 16;

// For poll(): rounded up, so that it is over when poll() returns.
int MillisecondsUntil(std::optional<Time> time, Time now) {
  if (!time.has_value()) return -1;
  if (*time <= now) return 0;
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(*time - now).count();
  return static_cast<int>(std::min<int64_t>(wait, 60'000));
}

// What is answered to one who connects and may not: all that it ever gets.
void SendRefusal(int socket, const absl::Status& status) {
  const std::string answer = AnswerBytes(status);
  // A new connection has room for it.
  static_cast<void>(send(socket, answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
}

}  // namespace

class MemorySocket::Impl {
 public:
  Impl(MemorySocketOptions options, ListeningSocket listener, StopSignal stop,
       RegionRegistry& regions, Log& log)
      : options_(std::move(options)),
        idle_timeout_(absl::ToChronoNanoseconds(options_.idle_timeout)),
        listener_(std::move(listener)),
        stop_(std::move(stop)),
        regions_(regions),
        log_(log),
        thread_([this] { Run(); }) {}

  ~Impl() {
    stop_.Send();
    thread_.join();
  }

  uint64_t connections() const { return count_; }

 private:
  // The order in which poll() is asked: these, then the connections.
  static constexpr size_t kStop = 0;
  static constexpr size_t kListener = 1;
  static constexpr size_t kFirstConnection = 2;

  void Run() {
    std::vector<pollfd> polled;
    while (true) {
      Time now = std::chrono::steady_clock::now();
      if (accept_again_.has_value() && *accept_again_ <= now) accept_again_.reset();
      std::optional<Time> wake = accept_again_;
      polled.assign({{stop_.get(), POLLIN, 0},
                     {listener_.get(), static_cast<short>(accept_again_ ? 0 : POLLIN), 0}});
      for (const auto& connection : connections_) {
        polled.push_back({connection->socket(), connection->events(), 0});
        const std::optional<Time> deadline = connection->deadline();
        if (deadline.has_value() && (!wake.has_value() || *deadline < *wake)) wake = deadline;
      }
      const int ready = poll(polled.data(), polled.size(), MillisecondsUntil(wake, now));
      if (ready < 0) continue;  // interrupted, or no memory for a moment
      if (polled[kStop].revents != 0) break;
      now = std::chrono::steady_clock::now();
      Advance(polled, now);
      if (polled[kListener].revents != 0) Accept(now);
      count_ = connections_.size();
    }
    connections_.clear();
    count_ = 0;
  }

  // Serves those who have sent something, or have gone, and ends those whose time is up. Their time
  // is compared after what they sent is read: another's registration may have kept the thread.
  void Advance(const std::vector<pollfd>& polled, Time now) {
    for (size_t i = 0; i < connections_.size(); ++i) {
      std::unique_ptr<MemoryConnection>& connection = connections_[i];
      if ((polled[kFirstConnection + i].revents != 0 || connection->releasing()) &&
          !connection->Advance(now)) {
        connection.reset();
      } else if (connection->deadline().has_value() && *connection->deadline() <= now) {
        connection->set_ending("idle for longer than --idle-timeout");
        connection.reset();
      }
    }
    std::erase(connections_, nullptr);
  }

  void Accept(Time now) {
    for (int i = 0; i < kAcceptedAtOnce; ++i) {
      FileDescriptor socket(
          accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket.ok()) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if (errno == EAGAIN) {
          out_of_descriptors_ = false;
          return;
        }
        // One line where it begins, not one for each try.
        if (!std::exchange(out_of_descriptors_, true)) {
          log_.Warning("cannot accept memory connections for now", {{"reason", strerror(errno)}});
        }
        accept_again_ = now + kOutOfDescriptorsPause;
        return;
      }
      Admit(std::move(socket), now);
    }
  }

  void Admit(FileDescriptor socket, Time now) {
    ucred credentials = {};
    socklen_t size = sizeof(credentials);
    absl::Status status;
    if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
      status = absl::PermissionDeniedError("the system does not say who connects");
    } else if (std::find(options_.uids.begin(), options_.uids.end(), credentials.uid) ==
               options_.uids.end()) {
      status = absl::PermissionDeniedError(
          absl::StrCat("user ", credentials.uid,
                       " may not register memory with this server: its --memory-socket-uids says "
                       "who may"));
    } else if (Pending() >= options_.max_pending_registrations) {
      status = absl::ResourceExhaustedError(absl::StrCat(
          Pending(), " connections have registered nothing yet, of at most ",
          options_.max_pending_registrations, " (--max-pending-registrations): try again"));
    }
    if (!status.ok()) {
      log_.Info("memory connection refused", {{"uid", credentials.uid},
                                              {"pid", credentials.pid},
                                              {"status", absl::StatusCodeToString(status.code())},
                                              {"reason", status.message()}});
      SendRefusal(socket.get(), status);
      return;
    }
    connections_.push_back(std::make_unique<MemoryConnection>(
        std::move(socket), MemoryPeer{credentials.uid, credentials.pid}, idle_timeout_, now,
        regions_, log_));
  }

  uint64_t Pending() const {
    return static_cast<uint64_t>(
        std::count_if(connections_.begin(), connections_.end(),
                      [](const auto& connection) { return !connection->has_region(); }));
  }

  const MemorySocketOptions options_;
  const MemoryConnection::Duration idle_timeout_;
  const ListeningSocket listener_;
  const StopSignal stop_;  // for the thread
  RegionRegistry& regions_;
  Log& log_;
  std::atomic<uint64_t> count_ = 0;

  // For the thread alone.
  std::vector<std::unique_ptr<MemoryConnection>> connections_;
  std::optional<Time> accept_again_;  // set: nobody is accepted until then
  bool out_of_descriptors_ = false;

  std::thread thread_;  // last: it uses all of the above
};

absl::StatusOr<std::unique_ptr<MemorySocket>> MemorySocket::Listen(MemorySocketOptions options,
                                                                   RegionRegistry& regions,
                                                                   Log& log) {
  if (options.uids.empty()) options.uids.push_back(geteuid());
  const bool own_only = std::all_of(options.uids.begin(), options.uids.end(),
                                    [](uid_t uid) { return uid == geteuid(); });
  // Who may connect is decided by who connects; the file's rights only save others the way.
  absl::StatusOr<ListeningSocket> listener =
      ListeningSocket::Listen(options.path, own_only ? 0600 : 0666, "--memory-socket");
  if (!listener.ok()) return listener.status();
  StopSignal stop;
  if (!stop.ok()) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.path,
                                               ": no event descriptor: ", strerror(errno)));
  }
  return std::unique_ptr<MemorySocket>(new MemorySocket(std::make_unique<Impl>(
      std::move(options), *std::move(listener), std::move(stop), regions, log)));
}

MemorySocket::MemorySocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MemorySocket::~MemorySocket() = default;

uint64_t MemorySocket::connections() const {
  return impl_->connections();
}

}  // namespace gradclip
