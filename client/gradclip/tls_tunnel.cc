#include "client/gradclip/tls_tunnel.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

// Four TLS records of the largest size.
constexpr size_t kBufferBytes = size_t{64} << 10;

short Wanted(TlsSession::State state) {
  if (state == TlsSession::State::kWantsRead) return POLLIN;
  return state == TlsSession::State::kWantsWrite ? POLLOUT : 0;
}

bool IsPassing(int error) {
  return error == EAGAIN || error == EINTR;
}

}  // namespace

TlsTunnel::TlsTunnel(std::unique_ptr<TlsSession> session, int plain)
    : session_(std::move(session)), plain_(plain) {
  out_.bytes.resize(kBufferBytes);
  in_.bytes.resize(kBufferBytes);
}

absl::StatusOr<std::unique_ptr<TlsTunnel>> TlsTunnel::Start(std::unique_ptr<TlsSession> session,
                                                            int plain) {
  std::unique_ptr<TlsTunnel> tunnel(new TlsTunnel(std::move(session), plain));
  // The user's signals are for the user's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  absl::Status status;
  try {
    tunnel->thread_ = std::thread(&TlsTunnel::Run, tunnel.get());
  } catch (const std::system_error& error) {
    status = absl::UnavailableError(absl::StrCat("can't start a thread for TLS: ", error.what()));
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!status.ok()) return status;
  return tunnel;
}

TlsTunnel::~TlsTunnel() {
  if (thread_.joinable()) thread_.join();
  close(plain_);
}

bool TlsTunnel::Alive() const {
  pollfd asked = {.fd = session_->socket(), .events = POLLRDHUP, .revents = 0};
  return poll(&asked, 1, 0) == 0;
}

absl::Status TlsTunnel::Failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void TlsTunnel::Run() {
  while (!closed_) {
    const bool moved_out = MoveOut();
    const bool moved_in = MoveIn();
    if (!moved_out && !moved_in && !closed_) closed_ = !Await();
  }
  if (writing_ && out_.empty()) session_->SayGoodbye();
  shutdown(session_->socket(), SHUT_RDWR);
  shutdown(plain_, SHUT_RDWR);
}

bool TlsTunnel::MoveOut() {
  if (out_.empty()) {
    const ssize_t got = recv(plain_, out_.bytes.data(), out_.bytes.size(), 0);
    if (got < 0 && IsPassing(errno)) return false;
    if (got <= 0) {
      closed_ = true;
      return false;
    }
    out_.begin = 0;
    out_.end = static_cast<size_t>(got);
  }
  if (!writing_) {
    // gRPC closes what it reads the end of once what it was writing is gone.
    out_.begin = out_.end;
    return true;
  }
  bool moved = false;
  while (!out_.empty()) {  // a record at a time
    const TlsSession::Step step =
        session_->Write(std::span(out_.bytes).subspan(out_.begin, out_.end - out_.begin));
    write_wants_ = Wanted(step.state);
    out_.begin += step.bytes;
    // What the server said before it closed is still to be read.
    if (step.state == TlsSession::State::kOver) StopWriting();
    if (step.state != TlsSession::State::kMoved) break;
    moved = true;
  }
  return moved;
}

bool TlsTunnel::FillIn() {
  in_.begin = in_.end = 0;
  while (reading_ && in_.end < in_.bytes.size()) {
    const TlsSession::Step step = session_->Read(std::span(in_.bytes).subspan(in_.end));
    read_wants_ = Wanted(step.state);
    in_.end += step.bytes;
    if (step.state == TlsSession::State::kMoved) continue;
    // Where writing has failed, nothing comes any more but what has come.
    if (step.state == TlsSession::State::kOver || !writing_) EndReading();
    break;
  }
  return !in_.empty();
}

bool TlsTunnel::MoveIn() {
  if (told_ || (in_.empty() && !FillIn() && reading_)) return false;
  if (in_.empty()) {
    // gRPC reads what is on its way, and then the end.
    shutdown(plain_, SHUT_WR);
    told_ = true;
    return false;
  }
  const ssize_t sent =
      send(plain_, in_.bytes.data() + in_.begin, in_.end - in_.begin, MSG_NOSIGNAL);
  if (sent < 0) {
    if (!IsPassing(errno)) closed_ = true;
    return false;
  }
  in_.begin += static_cast<size_t>(sent);
  return true;
}

void TlsTunnel::EndReading() {
  const std::lock_guard lock(mutex_);
  failure_ = session_->Failure();
  reading_ = false;
  StopWriting();
}

void TlsTunnel::StopWriting() {
  writing_ = false;
  out_.begin = out_.end;
}

bool TlsTunnel::Await() {
  pollfd waited[2] = {{.fd = plain_, .events = 0, .revents = 0},
                      {.fd = session_->socket(), .events = 0, .revents = 0}};
  auto& [plain, network] = waited;
  if (out_.empty()) {
    plain.events |= POLLIN;
  } else {
    network.events |= write_wants_;
  }
  if (!in_.empty()) {
    plain.events |= POLLOUT;
  } else if (reading_) {
    network.events |= read_wants_;
  }
  // Of a socket whose connection has ended poll() tells even where nobody asks.
  if (network.events == 0) network.fd = -1;
  while (poll(waited, 2, -1) < 0) {
    if (errno != EINTR && errno != EAGAIN) return false;
  }
  return (plain.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
}

}  // namespace gradclip
