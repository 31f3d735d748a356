// Carries bytes between gRPC, which is given a plain socket, and a TLS session with the server.
//
// Context: a connection must be one that can be cut at once (connection.h), so that its socket is
// ours; and a gRPC channel over a socket that is given takes no TLS credentials.
// Decision: gRPC gets one end of a pair of sockets. A thread moves what it writes there into the
// session, and what comes back into it. Closing gRPC's end ends the session, whatever the server
// does; when the server ends it, gRPC reads what came before and then the end.
// Consequence: a thread and 128 KiB for each connection, and one copy more each way.
//
// Thread-safe.
#ifndef GRADCLIP_CLIENT_GRADCLIP_TLS_TUNNEL_H_
#define GRADCLIP_CLIENT_GRADCLIP_TLS_TUNNEL_H_

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/gradclip/tls_session.h"

namespace gradclip {

class TlsTunnel {
 public:
  // `plain`: the other end of gRPC's, non-blocking, which it takes. UNAVAILABLE where the system
  // allows no further thread.
  static absl::StatusOr<std::unique_ptr<TlsTunnel>> Start(std::unique_ptr<TlsSession> session,
                                                          int plain);
  // REQUIRES: gRPC's end has been shut down, for which the thread waits.
  ~TlsTunnel();
  TlsTunnel(const TlsTunnel&) = delete;
  TlsTunnel& operator=(const TlsTunnel&) = delete;

  // False once the server, or the tunnel, has closed the connection.
  bool Alive() const;

  // Why the session failed; OK while it has not, and where the server just closed it. Known before
  // gRPC sees the end.
  absl::Status Failure() const;

 private:
  TlsTunnel(std::unique_ptr<TlsSession> session, int plain);

  // Bytes on their way in one direction.
  struct Buffer {
    std::vector<char> bytes;
    size_t begin = 0;
    size_t end = 0;
    bool empty() const { return begin == end; }
  };

  void Run();
  // Each moves what it can without waiting; false where that is nothing.
  bool MoveOut();
  bool MoveIn();
  bool FillIn();
  // Waits until either can move something again; false when gRPC's end is closed.
  bool Await();
  // The server is gone.
  void EndReading();
  void StopWriting();

  const std::unique_ptr<TlsSession> session_;  // from the start on the thread's, but for its socket
  const int plain_;
  Buffer out_;
  Buffer in_;
  // What the last steps want of the network socket, as poll() calls it.
  short write_wants_ = 0;
  short read_wants_ = 0;
  bool writing_ = true;  // while the session takes more; then all of it is dropped
  bool reading_ = true;  // while it may give more
  bool told_ = false;    // gRPC, that nothing more comes
  bool closed_ = false;  // gRPC's end
  mutable std::mutex mutex_;
  absl::Status failure_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_TLS_TUNNEL_H_
