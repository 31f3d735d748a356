#include "server/rpc/unread.h"

#include <dirent.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace gradclip {
namespace {

constexpr std::chrono::milliseconds kLookEvery{5};

// Of a unix socket. The kernel counts 768 bytes for a write of a few, such as a PING's answer, and
// an idle client of ours was seen to leave two of them: this is ten. gRPC reads at least 8 KiB at
// once, and what is read first is not lost with the connection.
constexpr int kInOneRead = 8192;

// Where a server listens.
struct Places {
  explicit Places(const std::vector<std::string>& addresses) {
    for (absl::string_view address : addresses) {
      if (absl::ConsumePrefix(&address, "unix:")) {
        absl::ConsumePrefix(&address, "//");
        paths.emplace_back(address);
      } else if (int port = 0; absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) {
        ports.push_back(port);
      }
    }
  }

  bool HavePort(in_port_t port) const {
    return std::find(ports.begin(), ports.end(), ntohs(port)) != ports.end();
  }
  bool HavePath(std::string_view path) const {
    return std::find(paths.begin(), paths.end(), path) != paths.end();
  }

  std::vector<int> ports;
  std::vector<std::string> paths;
};

// Whether `file_descriptor` is a connection accepted at one of `places` that holds something back.
// It may be closed meanwhile, and used for something else: nothing here changes it.
bool IsUnread(int file_descriptor, const Places& places) {
  union {
    sockaddr any;
    sockaddr_in v4;
    sockaddr_in6 v6;
    sockaddr_un path;
  } local = {};
  socklen_t size = sizeof(local);
  if (getsockname(file_descriptor, &local.any, &size) != 0) return false;
  int allowed = 0;
  if (local.any.sa_family == AF_INET) {
    if (!places.HavePort(local.v4.sin_port)) return false;
  } else if (local.any.sa_family == AF_INET6) {
    if (!places.HavePort(local.v6.sin6_port)) return false;
  } else if (local.any.sa_family == AF_UNIX) {
    constexpr size_t kPathAt = offsetof(sockaddr_un, sun_path);
    const size_t length = size > kPathAt ? size - kPathAt : 0;
    const std::string_view padded(local.path.sun_path, length);
    if (!places.HavePath(padded.substr(0, padded.find('\0')))) return false;
    allowed = kInOneRead;
  } else {
    return false;
  }
  int held = 0;
  // (Listeners have no such number, or 0.)
  return ioctl(file_descriptor, SIOCOUTQ, &held) == 0 && held > allowed;
}

bool AnyIsUnread(const Places& places) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  if (folder == nullptr) return false;
  while (const dirent* entry = readdir(folder.get())) {
    int file_descriptor = 0;
    if (absl::SimpleAtoi(entry->d_name, &file_descriptor) && IsUnread(file_descriptor, places)) {
      return true;
    }
  }
  return false;
}

}  // namespace

bool AwaitRead(const std::vector<std::string>& addresses,
               std::chrono::steady_clock::time_point deadline) {
  const Places places(addresses);
  while (AnyIsUnread(places)) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) return false;
    std::this_thread::sleep_until(std::min(now + kLookEvery, deadline));
  }
  return true;
}

}  // namespace gradclip
