#include "server/memory/limits.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace gradclip {
namespace {

namespace fs = std::filesystem;

// Total bytes in meminfo; else what the system says.
uint64_t PhysicalMemory(const fs::path& root) {
  std::ifstream file(root / "proc/meminfo");
  constexpr auto kRestOfLine = std::numeric_limits<std::streamsize>::max();
  for (std::string key; file >> key; file.ignore(kRestOfLine, '\n')) {
    uint64_t kibibytes;
    if (key == "MemTotal:" && file >> kibibytes) return kibibytes << 10;
  }
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// The number in `file`; none where it cannot be read or is "max".
std::optional<uint64_t> ReadLimit(const fs::path& file) {
  std::ifstream stream(file);
  std::string text;
  uint64_t bytes;
  if (!(stream >> text) || !absl::SimpleAtoi(text, &bytes)) return std::nullopt;
  return bytes;
}

// The smallest number in the files called `name` of `cgroup` and its ancestors up to `mount`.
// Inside a container the path may be the one that the host sees; its directories are then missing
// here, and the container's own limits are at the mount itself.
uint64_t SmallestLimit(const fs::path& mount, absl::string_view cgroup, const char* name) {
  uint64_t smallest = UINT64_MAX;
  fs::path directory = mount;
  smallest = std::min(smallest, ReadLimit(directory / name).value_or(UINT64_MAX));
  for (absl::string_view part : absl::StrSplit(cgroup, '/', absl::SkipEmpty())) {
    if (part == "..") break;  // outside of what this namespace shows
    directory /= std::string(part);
    smallest = std::min(smallest, ReadLimit(directory / name).value_or(UINT64_MAX));
  }
  return smallest;
}

}  // namespace

uint64_t SystemMemoryLimit(const fs::path& root) {
  uint64_t limit = PhysicalMemory(root);
  std::ifstream file(root / "proc/self/cgroup");
  // "0::/path" is cgroup v2; "4:memory:/path" names the controllers of one hierarchy of v1.
  for (std::string line; std::getline(file, line);) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (parts[0] == "0" && parts[1].empty()) {
      // Beside v1 ("hybrid"), v2 is mounted in a directory of its own.
      for (const char* mount : {"sys/fs/cgroup", "sys/fs/cgroup/unified"}) {
        limit = std::min(limit, SmallestLimit(root / mount, parts[2], "memory.max"));
      }
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      limit = std::min(
          limit, SmallestLimit(root / "sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes"));
    }
  }
  return limit;
}

}  // namespace gradclip
