// One HTTP/2 connection whose client sends whatever it is told to. It speaks as much of the
// protocol as an attacker needs: it reads what comes, counts it, knows the peer's windows, and
// answers SETTINGS and PING with what it sends next. Not thread-safe.
#ifndef GRADCLIP_TESTS_HOSTILE_HTTP2_CONNECTION_H_
#define GRADCLIP_TESTS_HOSTILE_HTTP2_CONNECTION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/hostile/frames.h"

namespace gradclip::hostile {

class Http2Connection {
 public:
  // address: "IPV4:PORT" or "unix:PATH". Sends nothing.
  static absl::StatusOr<std::unique_ptr<Http2Connection>> Connect(const std::string& address);
  ~Http2Connection();
  Http2Connection(const Http2Connection&) = delete;
  Http2Connection& operator=(const Http2Connection&) = delete;

  // The preface with these settings.
  absl::Status SendPreface(const std::vector<std::pair<uint16_t, uint32_t>>& settings = {});
  // The same, and acknowledges the peer's settings, which only then are limits.
  absl::Status Begin(const std::vector<std::pair<uint16_t, uint32_t>>& settings = {});

  // Sends all of it, reading meanwhile. UNAVAILABLE where the peer has closed, DEADLINE_EXCEEDED
  // where it takes nothing until the deadline.
  absl::Status Send(std::string_view bytes, absl::Time deadline);

  // Sends `bytes` as DATA frames of frame_bytes at most, as far as the peer's windows allow until
  // the deadline. Returns how much went out; less is no error.
  absl::StatusOr<size_t> SendData(uint32_t stream, std::string_view bytes, bool end_stream,
                                  absl::Time deadline, size_t frame_bytes = kMaxFrameBytes);

  // Reads what has come, without waiting.
  absl::Status Poll();
  // Reads until `done` says so. DEADLINE_EXCEEDED, or UNAVAILABLE where the peer has closed.
  absl::Status ReadUntil(absl::FunctionRef<bool()> done, absl::Time deadline);

  // The next stream of ours: 1, 3, ...
  uint32_t NextStream();

  // Whether Send() and SendData() read what comes. (An attacker who does not read.)
  void set_reads(bool reads) { reads_ = reads; }
  bool reads() const { return reads_; }

  struct Received {
    uint64_t bytes = 0;
    uint64_t headers = 0;
    uint64_t data_bytes = 0;
    uint64_t resets = 0;       // RST_STREAM
    uint64_t pings = 0;        // with and without ACK
    uint64_t settings = 0;     // without ACK
    bool closed = false;       // by the peer, with or without GOAWAY
    int64_t goaway_code = -1;  // -1: none came
    std::string goaway_text;
  };
  const Received& received() const { return received_; }
  // Whether a stream has ended, by END_STREAM or RST_STREAM, and the DATA bytes it brought.
  bool ended(uint32_t stream) const;
  uint64_t data_bytes(uint32_t stream) const;

  uint64_t sent_bytes() const { return sent_; }

 private:
  explicit Http2Connection(int socket) : socket_(socket) {}

  struct Stream {
    int64_t window = 0;  // relative to initial_window_
    uint64_t data_bytes = 0;
    bool ended = false;
  };

  absl::Status Wait(short events, absl::Time deadline, short* ready) const;
  absl::Status TakeFrames();
  absl::Status TakeFrame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload);

  const int socket_;
  uint32_t next_stream_ = 1;
  bool reads_ = true;
  uint64_t sent_ = 0;
  std::string pending_;  // answers of ours that wait for the next Send()
  std::string incoming_;
  int64_t window_ = 65535;
  int64_t initial_window_ = 65535;
  std::unordered_map<uint32_t, Stream> streams_;  // that the peer has said something of
  Received received_;
};

}  // namespace gradclip::hostile

#endif  // GRADCLIP_TESTS_HOSTILE_HTTP2_CONNECTION_H_
