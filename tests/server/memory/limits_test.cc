#include "server/memory/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace gradclip {
namespace {

// A root directory of the test's own: a machine of 16 GiB.
class SystemMemoryLimitTest : public ::testing::Test {
 protected:
  SystemMemoryLimitTest() {
    std::string name = ::testing::TempDir() + "/limits.XXXXXX";
    root_ = mkdtemp(name.data());
    Write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:   1 kB\nHugePages_Total:  0\n");
  }
  ~SystemMemoryLimitTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  std::filesystem::path root_;
};

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST_F(SystemMemoryLimitTest, IsPhysicalMemoryWithoutCgroups) {
  EXPECT_EQ(SystemMemoryLimit(root_), 16 * kGiB);
}

TEST_F(SystemMemoryLimitTest, ReadsTheCgroupOfVersion2) {
  Write("proc/self/cgroup", "0::/system.slice/gradclip.service\n");
  Write("sys/fs/cgroup/system.slice/gradclip.service/memory.max", "2147483648\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 2 * kGiB);
}

TEST_F(SystemMemoryLimitTest, ReadsTheAncestorsOfTheCgroup) {
  Write("proc/self/cgroup", "0::/kubepods/pod1/server\n");
  Write("sys/fs/cgroup/kubepods/memory.max", "8589934592\n");
  Write("sys/fs/cgroup/kubepods/pod1/memory.max", "1073741824\n");
  Write("sys/fs/cgroup/kubepods/pod1/server/memory.max", "max\n");
  EXPECT_EQ(SystemMemoryLimit(root_), kGiB);
}

TEST_F(SystemMemoryLimitTest, TakesMaxAsNoLimit) {
  Write("proc/self/cgroup", "0::/a\n");
  Write("sys/fs/cgroup/a/memory.max", "max\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 16 * kGiB);
}

TEST_F(SystemMemoryLimitTest, IgnoresLimitsAboveTheMachine) {
  Write("proc/self/cgroup", "0::/a\n4:memory:/b\n");
  Write("sys/fs/cgroup/unified/a/memory.max", "1099511627776\n");
  Write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 16 * kGiB);
}

// In a container with a namespace of its own the path is "/", and the limit is at the mount.
TEST_F(SystemMemoryLimitTest, ReadsTheContainersOwnLimitAtTheMount) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", "3221225472\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 3 * kGiB);
}

TEST_F(SystemMemoryLimitTest, StaysInsideTheMountWhenThePathLeadsOutOfIt) {
  Write("proc/self/cgroup", "0::/../../other\n");
  Write("sys/fs/cgroup/memory.max", "3221225472\n");
  Write("sys/other/memory.max", "1\n");
  Write("other/memory.max", "1\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 3 * kGiB);
}

TEST_F(SystemMemoryLimitTest, ReadsTheCgroupOfVersion1AndItsAncestors) {
  Write("proc/self/cgroup", "9:name=systemd:/x\n5:cpu,cpuacct:/\n4:hugetlb,memory:/docker/abc\n");
  Write("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "4294967296\n");
  Write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 4 * kGiB);
}

// A container without a namespace sees the host's path, of which nothing is mounted.
TEST_F(SystemMemoryLimitTest, ReadsTheMountWhereThePathOfVersion1IsTheHosts) {
  Write("proc/self/cgroup", "4:memory:/docker/abc\n0::/docker/abc\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 4 * kGiB);
}

TEST_F(SystemMemoryLimitTest, TakesTheSmallerOfBothVersionsInHybridMode) {
  Write("proc/self/cgroup", "4:memory:/a\n0::/b\n");
  Write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4294967296\n");
  Write("sys/fs/cgroup/unified/b/memory.max", "2147483648\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 2 * kGiB);
  Write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(SystemMemoryLimit(root_), kGiB);
}

TEST_F(SystemMemoryLimitTest, SurvivesFilesThatMakeNoSense) {
  Write("proc/self/cgroup", "\n0\nno colons\n0::\n4:memory\n::\n0::/a\n");
  Write("sys/fs/cgroup/a/memory.max", "lots\n");
  Write("sys/fs/cgroup/memory.max", "-1\n");
  EXPECT_EQ(SystemMemoryLimit(root_), 16 * kGiB);
}

TEST(SystemMemoryLimit, IsAPlausibleAmountHere) {
  EXPECT_GE(SystemMemoryLimit(), uint64_t{16} << 20);
  EXPECT_LE(SystemMemoryLimit(), static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                                     static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
}

}  // namespace
}  // namespace gradclip
