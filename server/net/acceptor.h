// Accepts the server's connections, on a thread of its own, and hands them on: gRPC neither counts
// them nor says who is behind a unix socket. Thread-safe, but for Start() and Close().
//
// It goes on knowing the connections that it has handed on, by number and inode, and never closes
// or keeps one: once gRPC has closed it, its number may be another's.
#ifndef GRADCLIP_SERVER_NET_ACCEPTOR_H_
#define GRADCLIP_SERVER_NET_ACCEPTOR_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/net/file_descriptor.h"
#include "server/net/listener.h"
#include "server/net/stop_signal.h"
#include "server/observe/limit_hits.h"
#include "server/observe/log.h"

namespace gradclip {

// Who is at the other end of a connection.
struct Peer {
  // Who counts as one: "10.1.2.3", "2001:db8:1:2::/64" (what one IPv6 host may have of addresses),
  // "uid:1000", or kUnlistedUsers.
  std::string host;
  std::string address = {};       // as gRPC writes it: "ipv4:10.1.2.3:5123"; empty for unix sockets
  std::optional<uid_t> uid = {};  // of a unix socket's
};

// Users of unix sockets are called so, with their number; and together all those that are not
// among Acceptor::Limits::listed_uids.
inline constexpr absl::string_view kUserPrefix = "uid:";
inline constexpr absl::string_view kUnlistedUsers = "users that may not call";

// "10.1.2.3" for "ipv4:10.1.2.3:5123", which is how gRPC names a peer. What is neither IPv4 nor
// IPv6 stays as it is.
std::string HostOf(absl::string_view grpc_peer);

class Acceptor {
 public:
  struct Limits {
    uint64_t connections = 0;           // --max-connections
    uint64_t connections_per_peer = 0;  // --max-connections-per-peer
    // --unix-socket-uids; empty: every user of a unix socket counts for itself.
    std::vector<uid_t> listed_uids = {};
  };
  // Takes over a connection, non-blocking; on the acceptor's thread.
  using Take = std::function<void(FileDescriptor connection, const Peer& peer)>;

  // A connection over a limit is closed unanswered, logged once a second at most, and counted in
  // `hits`. `log` and `hits` must outlive this.
  Acceptor(std::vector<Listener> listeners, Limits limits, Take take, Log& log, LimitHits& hits);
  ~Acceptor();  // as Close()

  // Begins to accept. Once. UNAVAILABLE where the system has no descriptor for it.
  absl::Status Start();

  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Accepts nobody any more, and removes the files of unix sockets. What is handed on stays open.
  void Close();

  // Connections handed on that are still open.
  uint64_t connections() const;

  // Shuts down the connection from Peer::address, if there is one.
  void Cut(absl::string_view address) const;

  // Whether a connection on which a call has just been cancelled is lost: its peer has hung up, or
  // it was shut down for another reason. For a unix socket, where they have no addresses: whether
  // any of `host` is. (gRPC does not say, and closes it only when its last call has ended.)
  bool IsLost(absl::string_view address, absl::string_view host) const;

  // Waits until no connection holds back what was written to it, or for the deadline. False where
  // the deadline came first. TCP: until the peer's kernel has confirmed every byte. Unix: until the
  // peer has read all but what it will get in one read, for a peer that idles leaves gRPC's own
  // frames where they are.
  bool AwaitRead(std::chrono::steady_clock::time_point deadline) const;

 private:
  struct Connection {
    int number = -1;
    ino_t inode = 0;
    Peer peer;
  };

  void Run();
  bool AcceptSome(int listener, bool is_unix);
  std::string UserAsHost(uid_t uid) const;
  void Admit(FileDescriptor connection, Peer peer);
  // The flag's name of the limit that one more of `host` is over; empty for none.
  absl::string_view LimitReached(const std::string& host);
  void Sweep();  // forgets what is closed; REQUIRES: mutex_
  static bool IsOpen(const Connection& connection);
  static bool IsUnread(const Connection& connection);
  static bool IsHungUp(const Connection& connection);

  const Limits limits_;
  const Take take_;
  Log& log_;
  LimitHits& hits_;
  const StopSignal stop_;  // for the thread

  // The thread's, until it has ended.
  std::vector<Listener> listeners_;
  bool out_of_descriptors_ = false;
  std::chrono::steady_clock::time_point quiet_until_;  // no line about refused connections before

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<Connection> connections_;
  std::map<std::string, uint64_t, std::less<>> count_of_host_;
  std::chrono::steady_clock::time_point swept_;

  std::thread thread_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_ACCEPTOR_H_
