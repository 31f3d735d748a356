#include "server/net/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace gradclip {
namespace {

constexpr int kStream = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

// None where `path` is too long for an address.
std::optional<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) return std::nullopt;
  std::copy(path.begin(), path.end(), address.sun_path);
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

}  // namespace

SocketFile LookAtSocket(const std::string& path) {
  struct stat file = {};
  if (stat(path.c_str(), &file) != 0) {
    return errno == ENOENT ? SocketFile::kMissing : SocketFile::kOther;
  }
  const std::optional<sockaddr_un> address = AddressOf(path);
  if (!S_ISSOCK(file.st_mode) || !address.has_value()) return SocketFile::kOther;
  const FileDescriptor connection(socket(AF_UNIX, kStream, 0));
  if (!connection.ok()) return SocketFile::kOther;
  if (connect(connection.get(), Generic(*address), sizeof(*address)) == 0) {
    return SocketFile::kAnswered;
  }
  switch (errno) {
    case EAGAIN:  // many others wait to be answered
      return SocketFile::kAnswered;
    case ECONNREFUSED:
      return SocketFile::kLeftBehind;
    case ENOENT:
      return SocketFile::kMissing;
    default:
      return SocketFile::kOther;
  }
}

absl::StatusOr<ListeningSocket> ListeningSocket::Listen(const std::string& path,
                                                        std::optional<mode_t> mode,
                                                        const std::string& flag) {
  const auto refused = [&](auto... why) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", path, ": ", why...));
  };
  const std::optional<sockaddr_un> address = AddressOf(path);
  if (!address.has_value()) {
    return refused("a path of 1 to ", sizeof(address->sun_path) - 1, " bytes is needed; shorten ",
                   flag);
  }
  switch (LookAtSocket(path)) {
    case SocketFile::kAnswered:
      return refused("another process does; stop it, or choose another path with ", flag);
    case SocketFile::kLeftBehind:
      unlink(path.c_str());
      break;
    case SocketFile::kMissing:
    case SocketFile::kOther:  // bind() says what is wrong
      break;
  }
  FileDescriptor listener(socket(AF_UNIX, kStream, 0));
  if (!listener.ok()) return refused("no socket: ", strerror(errno));
  if (bind(listener.get(), Generic(*address), sizeof(*address)) != 0) {
    if (errno == EADDRINUSE) {
      return refused(
          "something else is there, or not for this user; remove it, or choose another "
          "path with ",
          flag);
    }
    return refused(strerror(errno), "; choose another path with ", flag);
  }
  ListeningSocket listening(path, std::move(listener));
  // Nobody can connect before listen(), so that the file's rights are in force for all.
  if ((mode.has_value() && chmod(path.c_str(), *mode) != 0) ||
      listen(listening.get(), SOMAXCONN) != 0) {
    return refused(strerror(errno));
  }
  return listening;
}

ListeningSocket::ListeningSocket(std::string path, FileDescriptor socket)
    : path_(std::move(path)), socket_(std::move(socket)) {
  struct stat file = {};
  if (lstat(path_.c_str(), &file) != 0) return;
  device_ = file.st_dev;
  inode_ = file.st_ino;
}

ListeningSocket::~ListeningSocket() {
  struct stat file = {};
  if (!socket_.ok() || lstat(path_.c_str(), &file) != 0) return;
  if (file.st_dev == device_ && file.st_ino == inode_) unlink(path_.c_str());
}

}  // namespace gradclip
