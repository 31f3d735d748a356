// A region whose owner takes its pages away while it is read, in a process that may have no more
// memory than twice the region.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include "server/memory/budget.h"
#include "server/shm/registry.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLimit = 128 * kMiB;
constexpr int kRounds = 20;

// A control group with a memory limit, of whichever version the system has. Not thread-safe.
class MemoryLimit {
 public:
  explicit MemoryLimit(uint64_t bytes) {
    const std::string name = "gradclip-test-" + std::to_string(getpid());
    Make("/sys/fs/cgroup/memory/" + name, "memory.limit_in_bytes", "memory.max_usage_in_bytes",
         bytes);
    if (!ok()) Make("/sys/fs/cgroup/" + name, "memory.max", "memory.peak", bytes);
  }
  ~MemoryLimit() {
    if (ok()) rmdir(folder_.c_str());
  }

  bool ok() const { return !folder_.empty(); }
  const std::string& why_not() const { return why_not_; }

  // For the child.
  bool Join() const { return Write(folder_ / "cgroup.procs", std::to_string(getpid())); }

  // The most that was ever used, in bytes; 0 where the system does not say (before Linux 5.19).
  uint64_t MostUsed() const {
    uint64_t bytes = 0;
    std::ifstream(folder_ / peak_file_) >> bytes;
    return bytes;
  }

 private:
  void Make(const fs::path& folder, const std::string& limit_file, const std::string& peak_file,
            uint64_t bytes) {
    if (mkdir(folder.c_str(), 0755) != 0) {
      why_not_ += "cannot make " + folder.string() + ": " + strerror(errno) + "; ";
    } else if (!fs::exists(folder / limit_file) ||
               !Write(folder / limit_file, std::to_string(bytes))) {
      why_not_ += "no memory limit in " + folder.string() + "; ";
      rmdir(folder.c_str());
    } else {
      folder_ = folder;
      peak_file_ = peak_file;
    }
  }

  static bool Write(const fs::path& file, const std::string& text) {
    std::ofstream stream(file);
    stream << text << std::flush;
    return stream.good();
  }

  fs::path folder_;
  std::string peak_file_;
  std::string why_not_;
};

// Reads, and perhaps writes, some bytes of every page. False: they are nothing that was ever there.
// Not seen by ThreadSanitizer, which would note each byte in memory of its own, several times as
// much.
__attribute__((no_sanitize("thread"))) bool TouchAll(const Region& region, bool write) {
  const volatile std::byte* const read = region.data();
  volatile std::byte* const written = region.writable_data();
  for (uint64_t offset = 0; offset < region.size(); offset += 512) {
    const std::byte value = read[offset];
    if (value > std::byte{2}) return false;
    if (write) written[offset] = std::byte{2};
  }
  return true;
}

TEST(MemoryLimitTest, PunchingHolesWhileARegionIsReadKillsNobody) {
  const MemoryLimit limit(kLimit);
  if (!limit.ok()) GTEST_SKIP() << limit.why_not();
  const uint64_t length = kLimit / 2;
  const FileDescriptor memfd = MakeMemfd(length);
  Fill(memfd, 1);  // this process's memory, until it is punched
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const FileDescriptor rounds(ends[0]);
  FileDescriptor round_begins(ends[1]);

  const pid_t server = fork();
  if (server == 0) {
    if (!limit.Join()) _exit(2);
    MemoryBudget budget(kLimit / 2);
    RegionRegistry registry({1, 1, kLimit, kLimit}, budget);
    const auto token = registry.Register(0, memfd.get(), length, false);
    if (!token.ok()) _exit(3);
    // All that could be charged for it is charged: nothing else gets in.
    MemoryBudget::Reservation more;
    if (budget.TryReserve("", 1, &more)) _exit(4);
    const std::shared_ptr<Region> region = registry.Find(*token);
    for (int round = 0; round < kRounds; ++round) {
      if (write(round_begins.get(), "r", 1) != 1) _exit(5);
      if (!TouchAll(*region, /*write=*/round % 2 == 1)) _exit(6);
    }
    _exit(region->broken() ? 7 : 0);
  }
  round_begins = FileDescriptor();
  // A hole that grows over all of it while it is read, and once more in each round.
  int punches = 0;
  for (char round; read(rounds.get(), &round, 1) == 1;) {
    for (uint64_t offset = 0; offset < length; offset += kMiB) {
      PunchHole(memfd, offset, kMiB);
      ++punches;
    }
  }
  int status = 0;
  ASSERT_EQ(waitpid(server, &status, 0), server);
  ASSERT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status) << " after " << punches
                                 << " punches";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  // The limit was in force: what was punched came back at the expense of the one who read it.
  const uint64_t most = limit.MostUsed();
  if (most > 0) {
    EXPECT_GE(most, length / 2);
    EXPECT_LE(most, kLimit);
  }
}

}  // namespace
}  // namespace gradclip
