// The two servers that are compared, each a process of its own: gradclip-server, and this program
// as the raw one. Not thread-safe; `addresses` may be read from everywhere.
#ifndef GRADCLIP_TESTS_BENCH_SERVERS_H_
#define GRADCLIP_TESTS_BENCH_SERVERS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/child.h"

namespace gradclip::bench {

// A folder for sockets and logs, removed with all it holds at the end.
class ScratchFolder {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Make();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// A running server, and where it listens.
struct RunningServer {
  std::unique_ptr<Child> process;
  std::string tcp;
  std::string unix_socket;
};

// The gradclip-server that lies beside this program, with or without a memory socket.
absl::StatusOr<RunningServer> StartOurs(const ScratchFolder& folder, bool shares_memory = false);
// The same with these flags.
absl::StatusOr<RunningServer> StartOursWith(const ScratchFolder& folder,
                                            const std::vector<std::string>& flags);
// This program with --serve-raw.
absl::StatusOr<RunningServer> StartRaw(const ScratchFolder& folder);

struct ServerPair {
  RunningServer ours;
  RunningServer raw;
};
absl::StatusOr<ServerPair> StartBoth(const ScratchFolder& folder, bool shares_memory = false);

// The same transport to both servers.
struct Transport {
  std::string name;
  std::string ours;
  std::string raw;
};
inline Transport Tcp(const ServerPair& pair) {
  return {"TCP", pair.ours.tcp, pair.raw.tcp};
}
inline Transport UnixSocket(const ServerPair& pair) {
  return {"unix", pair.ours.unix_socket, pair.raw.unix_socket};
}

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_SERVERS_H_
