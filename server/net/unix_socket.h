// Unix sockets as files: who is behind one, and how to listen at one. Functions of the file system;
// thread-safe.
#ifndef GRADCLIP_SERVER_NET_UNIX_SOCKET_H_
#define GRADCLIP_SERVER_NET_UNIX_SOCKET_H_

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/net/file_descriptor.h"

namespace gradclip {

enum class SocketFile {
  kMissing,
  kAnswered,    // a process listens
  kLeftBehind,  // a socket that nobody listens at
  kOther,       // no socket, or one that this process may not connect to
};
SocketFile LookAtSocket(const std::string& path);

// A stream socket that listens at a path and does not wait; the file goes with it. Not thread-safe.
class ListeningSocket {
 public:
  // Replaces a socket that was left behind at `path`. `mode` is the file's, 0666 to let others
  // connect; none: as umask says. UNAVAILABLE, whose message starts with "cannot listen on PATH":
  // the path is taken, in a folder that is not there, not permitted, or not of 1 to 107 bytes. Says
  // what to do about it, naming `flag`.
  static absl::StatusOr<ListeningSocket> Listen(const std::string& path, std::optional<mode_t> mode,
                                                const std::string& flag);

  // Removes the file, where it is still the one that Listen() made.
  ~ListeningSocket();
  ListeningSocket(ListeningSocket&&) = default;
  ListeningSocket& operator=(ListeningSocket&&) = delete;

  int get() const { return socket_.get(); }

 private:
  ListeningSocket(std::string path, FileDescriptor socket);

  std::string path_;
  FileDescriptor socket_;
  dev_t device_ = 0;  // of the file at path_
  ino_t inode_ = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NET_UNIX_SOCKET_H_
