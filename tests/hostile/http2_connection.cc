#include "tests/hostile/http2_connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {
namespace {

constexpr absl::Duration kHandshakeTimeout = absl::Seconds(5);

uint32_t ReadBigEndian(std::string_view bytes, size_t at, size_t size) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

absl::StatusOr<int> ConnectSocket(int family, const sockaddr* address, socklen_t size) {
  const int descriptor = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, "socket");
  // Connecting is waited for: at most for these 5 s, on loopback no time at all.
  const timeval limit = {.tv_sec = 5, .tv_usec = 0};
  setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect(descriptor, address, size) != 0) {
    const int error = errno;
    close(descriptor);
    return absl::ErrnoToStatus(error, "connect");
  }
  if (family == AF_INET) {
    const int on = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  return descriptor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Http2Connection>> Http2Connection::Connect(
    const std::string& address) {
  absl::StatusOr<int> descriptor = absl::InvalidArgumentError(
      absl::StrCat("cannot connect to ", address,
                   ": an address is IPV4:PORT, such as 127.0.0.1:50051, or "
                   "unix:PATH"));
  if (address.starts_with("unix:")) {
    sockaddr_un unix_address = {};
    unix_address.sun_family = AF_UNIX;
    const std::string path = address.substr(5);
    if (path.size() >= sizeof unix_address.sun_path) return descriptor.status();
    std::memcpy(unix_address.sun_path, path.data(), path.size());
    descriptor = ConnectSocket(AF_UNIX, reinterpret_cast<const sockaddr*>(&unix_address),
                               sizeof unix_address);
  } else {
    const size_t colon = address.rfind(':');
    int port = 0;
    sockaddr_in ip_address = {};
    ip_address.sin_family = AF_INET;
    if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
        inet_pton(AF_INET, address.substr(0, colon).c_str(), &ip_address.sin_addr) != 1) {
      return descriptor.status();
    }
    ip_address.sin_port = htons(static_cast<uint16_t>(port));
    descriptor =
        ConnectSocket(AF_INET, reinterpret_cast<const sockaddr*>(&ip_address), sizeof ip_address);
  }
  if (!descriptor.ok()) return descriptor.status();
  return std::unique_ptr<Http2Connection>(new Http2Connection(*descriptor));
}

Http2Connection::~Http2Connection() {
  close(socket_);
}

absl::Status Http2Connection::SendPreface(
    const std::vector<std::pair<uint16_t, uint32_t>>& settings) {
  return Send(std::string(kPreface) + Settings(settings), absl::Now() + kHandshakeTimeout);
}

absl::Status Http2Connection::Begin(const std::vector<std::pair<uint16_t, uint32_t>>& settings) {
  if (absl::Status sent = SendPreface(settings); !sent.ok()) return sent;
  const absl::Time deadline = absl::Now() + kHandshakeTimeout;
  const absl::Status come = ReadUntil([this] { return received_.settings > 0; }, deadline);
  if (!come.ok()) return come;
  return Send({}, deadline);
}

absl::Status Http2Connection::Wait(short events, absl::Time deadline, short* ready) const {
  pollfd descriptor = {.fd = socket_, .events = events, .revents = 0};
  const absl::Duration left = std::max(absl::ZeroDuration(), deadline - absl::Now());
  const int milliseconds =
      static_cast<int>(std::min<int64_t>(1 << 20, absl::ToInt64Milliseconds(left) + 1));
  const int count = poll(&descriptor, 1, left == absl::ZeroDuration() ? 0 : milliseconds);
  *ready = descriptor.revents;
  if (count < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
  if (count == 0 && left == absl::ZeroDuration()) {
    return absl::DeadlineExceededError("time was up");
  }
  return absl::OkStatus();
}

absl::Status Http2Connection::Send(std::string_view bytes, absl::Time deadline) {
  const std::string answers = std::exchange(pending_, {});
  std::array<std::string_view, 2> parts = {answers, bytes};
  for (std::string_view& part : parts) {
    while (!part.empty()) {
      const ssize_t count = send(socket_, part.data(), part.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count > 0) {
        sent_ += static_cast<uint64_t>(count);
        part.remove_prefix(static_cast<size_t>(count));
      } else if (errno != EAGAIN && errno != EINTR) {
        // What came before the end may say why.
        const absl::Status read = Poll();
        received_.closed = true;
        return absl::UnavailableError(
            absl::StrCat("the peer has closed the connection: ", std::strerror(errno)));
      } else {
        short ready = 0;
        const auto events = static_cast<short>(reads_ ? POLLIN | POLLOUT : POLLOUT);
        if (absl::Status waited = Wait(events, deadline, &ready); !waited.ok()) return waited;
        if (reads_ && (ready & POLLIN) != 0) {
          if (absl::Status read = Poll(); !read.ok()) return read;
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Http2Connection::SendData(uint32_t stream, std::string_view bytes,
                                                 bool end_stream, absl::Time deadline,
                                                 size_t frame_bytes) {
  constexpr size_t kBatchBytes = size_t{64} << 10;
  const auto window = [&] { return std::min(window_, initial_window_ + streams_[stream].window); };
  size_t sent = 0;
  while (sent < bytes.size()) {
    const absl::Status may = ReadUntil([&] { return window() > 0; }, deadline);
    if (absl::IsDeadlineExceeded(may)) return sent;
    if (!may.ok()) return may;
    std::string frames;
    while (sent < bytes.size() && window() > 0 && frames.size() < kBatchBytes) {
      const size_t size =
          std::min({bytes.size() - sent, frame_bytes, static_cast<size_t>(window())});
      const bool last = end_stream && sent + size == bytes.size();
      frames += Frame(FrameType::kData, last ? kEndStream : 0, stream, bytes.substr(sent, size));
      window_ -= static_cast<int64_t>(size);
      streams_[stream].window -= static_cast<int64_t>(size);
      sent += size;
    }
    if (absl::Status out = Send(frames, deadline); !out.ok()) return out;
    if (reads_) {
      if (absl::Status read = Poll(); !read.ok()) return read;
    }
  }
  return sent;
}

absl::Status Http2Connection::Poll() {
  std::array<char, size_t{64} << 10> buffer;
  while (true) {
    const ssize_t count = recv(socket_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0) {
      received_.bytes += static_cast<uint64_t>(count);
      incoming_.append(buffer.data(), static_cast<size_t>(count));
      if (absl::Status taken = TakeFrames(); !taken.ok()) return taken;
    } else if (count < 0 && errno == EINTR) {
      continue;
    } else if (count < 0 && errno == EAGAIN) {
      return absl::OkStatus();
    } else {
      received_.closed = true;
      return absl::UnavailableError("the peer has closed the connection");
    }
  }
}

absl::Status Http2Connection::ReadUntil(absl::FunctionRef<bool()> done, absl::Time deadline) {
  while (!done()) {
    if (!pending_.empty()) {
      if (absl::Status sent = Send({}, deadline); !sent.ok()) return sent;
    }
    short ready = 0;
    if (absl::Status waited = Wait(POLLIN, deadline, &ready); !waited.ok()) return waited;
    if (absl::Status read = Poll(); !read.ok()) {
      return done() ? absl::OkStatus() : read;
    }
  }
  return absl::OkStatus();
}

absl::Status Http2Connection::TakeFrames() {
  size_t at = 0;
  while (incoming_.size() - at >= kFrameHeaderBytes) {
    const size_t length = ReadBigEndian(incoming_, at, 3);
    if (incoming_.size() - at < kFrameHeaderBytes + length) break;
    const auto type = static_cast<uint8_t>(incoming_[at + 3]);
    const auto flags = static_cast<uint8_t>(incoming_[at + 4]);
    const uint32_t stream = ReadBigEndian(incoming_, at + 5, 4) & 0x7fffffff;
    const std::string_view payload =
        std::string_view(incoming_).substr(at + kFrameHeaderBytes, length);
    if (absl::Status taken = TakeFrame(type, flags, stream, payload); !taken.ok()) return taken;
    at += kFrameHeaderBytes + length;
  }
  incoming_.erase(0, at);
  return absl::OkStatus();
}

absl::Status Http2Connection::TakeFrame(uint8_t type, uint8_t flags, uint32_t stream,
                                        std::string_view payload) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::kData:
      received_.data_bytes += payload.size();
      streams_[stream].data_bytes += payload.size();
      if ((flags & kEndStream) != 0) streams_[stream].ended = true;
      break;
    case FrameType::kHeaders:
      ++received_.headers;
      if ((flags & kEndStream) != 0) streams_[stream].ended = true;
      break;
    case FrameType::kRstStream:
      ++received_.resets;
      streams_[stream].ended = true;
      break;
    case FrameType::kSettings:
      for (size_t at = 0; (flags & kAck) == 0 && at + 6 <= payload.size(); at += 6) {
        if (ReadBigEndian(payload, at, 2) == kInitialWindowSize) {
          initial_window_ = ReadBigEndian(payload, at + 2, 4);
        }
      }
      if ((flags & kAck) == 0) {
        ++received_.settings;
        pending_ += SettingsAck();
      }
      break;
    case FrameType::kPing:
      ++received_.pings;
      if ((flags & kAck) == 0) pending_ += Frame(FrameType::kPing, kAck, 0, payload);
      break;
    case FrameType::kGoAway:
      if (payload.size() < 8) return absl::DataLossError("a GOAWAY is too short");
      received_.goaway_code = ReadBigEndian(payload, 4, 4);
      received_.goaway_text = std::string(payload.substr(8));
      break;
    case FrameType::kWindowUpdate:
      if (payload.size() < 4) return absl::DataLossError("a WINDOW_UPDATE is too short");
      (stream == 0 ? window_ : streams_[stream].window) += ReadBigEndian(payload, 0, 4);
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

uint32_t Http2Connection::NextStream() {
  return std::exchange(next_stream_, next_stream_ + 2);
}

bool Http2Connection::ended(uint32_t stream) const {
  const auto found = streams_.find(stream);
  return found != streams_.end() && found->second.ended;
}

uint64_t Http2Connection::data_bytes(uint32_t stream) const {
  const auto found = streams_.find(stream);
  return found == streams_.end() ? 0 : found->second.data_bytes;
}

}  // namespace gradclip::hostile
