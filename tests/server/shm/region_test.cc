#include "server/shm/region.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RegionTest : public testing::Test {
 protected:
  ~RegionTest() override {
    region_.reset();
    EXPECT_EQ(MemfdMappings(), 0);  // on no way out
    EXPECT_EQ(OpenDescriptors(), descriptors_);
  }

  // Maps it; its status.
  absl::Status Map(const FileDescriptor& memfd, uint64_t length, bool read_only = false) {
    auto region = Region::Map(memfd.get(), length, read_only);
    if (region.ok()) region_ = *region;
    return region.status();
  }

  static void ExpectRefused(const absl::Status& status, absl::StatusCode code,
                            const std::string& text) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  const size_t descriptors_ = OpenDescriptors();
  std::shared_ptr<Region> region_;
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

TEST_F(RegionTest, SharesMemoryWithItsOwner) {
  const FileDescriptor memfd = MakeMemfd(3 * PageBytes());
  Fill(memfd, 1);
  ASSERT_TRUE(Map(memfd, 3 * PageBytes()).ok());
  EXPECT_EQ(region_->size(), 3 * PageBytes());
  EXPECT_FALSE(region_->read_only());
  EXPECT_TRUE(IsFilled(region_->data(), region_->size(), 1));
  Fill(memfd, 2);
  EXPECT_TRUE(IsFilled(region_->data(), region_->size(), 2));
  region_->writable_data()[PageBytes()] = std::byte{3};
  EXPECT_EQ(region_->data()[PageBytes()], std::byte{3});
  std::byte byte{};
  ASSERT_EQ(pread(memfd.get(), &byte, 1, static_cast<off_t>(PageBytes())), 1);
  EXPECT_EQ(byte, std::byte{3});
  EXPECT_FALSE(region_->broken());
}

TEST_F(RegionTest, OutlivesItsDescriptor) {
  {
    const FileDescriptor memfd = MakeMemfd(PageBytes());
    Fill(memfd, 5);
    ASSERT_TRUE(Map(memfd, PageBytes()).ok());
  }
  EXPECT_TRUE(IsFilled(region_->data(), PageBytes(), 5));
}

TEST_F(RegionTest, TakesLengthsThatAreNoWholePages) {
  for (const uint64_t length : {uint64_t{1}, PageBytes() - 1, PageBytes() + 1}) {
    const FileDescriptor memfd = MakeMemfd(length);
    Fill(memfd, 4);
    ASSERT_TRUE(Map(memfd, length).ok());
    EXPECT_TRUE(IsFilled(region_->data(), length, 4));
  }
}

TEST_F(RegionTest, ReadOnlyHasNothingToWriteTo) {
  for (const int seals : {0, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE}) {
    const FileDescriptor memfd = MakeMemfd(2 * PageBytes(), 0);
    Fill(memfd, 6);
    ASSERT_EQ(fcntl(memfd.get(), F_ADD_SEALS, kNeededSeals | seals), 0);
    ASSERT_TRUE(Map(memfd, 2 * PageBytes(), /*read_only=*/true).ok());
    EXPECT_TRUE(region_->read_only());
    EXPECT_EQ(region_->writable_data(), nullptr);
    EXPECT_TRUE(IsFilled(region_->data(), region_->size(), 6));
  }
}

TEST_F(RegionTest, SeesWritesThatAFutureWriteSealLeavesToItsOwner) {
  const FileDescriptor memfd = MakeMemfd(PageBytes(), 0);
  auto* const own = static_cast<char*>(
      mmap(nullptr, PageBytes(), PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(), 0));
  ASSERT_NE(own, MAP_FAILED);
  ASSERT_EQ(fcntl(memfd.get(), F_ADD_SEALS, kNeededSeals | F_SEAL_FUTURE_WRITE), 0);
  ASSERT_TRUE(Map(memfd, PageBytes(), /*read_only=*/true).ok());
  own[17] = 8;
  EXPECT_EQ(region_->data()[17], std::byte{8});
  munmap(own, PageBytes());
}

TEST_F(RegionTest, RefusesSealsAgainstWritingUnlessReadOnly) {
  for (const int seal : {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE}) {
    ExpectRefused(Map(MakeMemfd(PageBytes(), kNeededSeals | seal), PageBytes()), kPrecondition,
                  "flag 1 (read only)");
  }
}

TEST_F(RegionTest, RefusesWhereAnySealIsMissingAndNamesIt) {
  ExpectRefused(Map(MakeMemfd(1, F_SEAL_GROW | F_SEAL_SEAL), 1), kInvalid, "lacks F_SEAL_SHRINK:");
  ExpectRefused(Map(MakeMemfd(1, F_SEAL_SHRINK | F_SEAL_SEAL), 1), kInvalid, "lacks F_SEAL_GROW:");
  ExpectRefused(Map(MakeMemfd(1, F_SEAL_SHRINK | F_SEAL_GROW), 1), kInvalid, "lacks F_SEAL_SEAL:");
  ExpectRefused(Map(MakeMemfd(1, 0), 1), kInvalid,
                "lacks F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL:");
  // The same where it may only be read.
  ExpectRefused(Map(MakeMemfd(1, F_SEAL_WRITE), 1, true), kInvalid, "lacks F_SEAL_SHRINK");
}

TEST_F(RegionTest, RefusesAnyLengthButTheFiles) {
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, PageBytes() - 1, PageBytes() + 1,
                                uint64_t{1} << 63, UINT64_MAX}) {
    ExpectRefused(Map(memfd, length), kInvalid,
                  "says " + std::to_string(length) + " bytes and the memfd has " +
                      std::to_string(PageBytes()));
  }
  ExpectRefused(Map(MakeMemfd(0), 0), kInvalid, "at least 1");
}

TEST_F(RegionTest, RefusesWhatIsNoMemfd) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const FileDescriptor reader(ends[0]);
  const FileDescriptor writer(ends[1]);
  ExpectRefused(Map(reader, 1), kInvalid, "no memfd");
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const FileDescriptor one(ends[0]);
  const FileDescriptor other(ends[1]);
  ExpectRefused(Map(one, 1), kInvalid, "no memfd");
  ExpectRefused(Map(FileDescriptor(), 1), kInvalid, "no memfd");
  const FileDescriptor device(open("/dev/zero", O_RDWR | O_CLOEXEC));
  ExpectRefused(Map(device, 1), kInvalid, "no memfd");
}

// On a disk, or in /dev/shm, whose files can be opened by their names.
TEST_F(RegionTest, RefusesFilesWithNames) {
  for (std::string path :
       {testing::TempDir() + "gradclip-XXXXXX", std::string("/dev/shm/gradclip-XXXXXX")}) {
    const FileDescriptor file(mkstemp(path.data()));
    if (!file.ok()) continue;  // there is no such folder here
    unlink(path.c_str());
    ASSERT_EQ(ftruncate(file.get(), 1), 0);
    const absl::Status status = Map(file, 1);
    EXPECT_EQ(status.code(), kInvalid) << path << status;
  }
}

TEST_F(RegionTest, RefusesMemfdsOfHugetlbfs) {
  const FileDescriptor memfd(
      memfd_create("gradclip-test", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!memfd.ok()) GTEST_SKIP() << "the system makes no such memfd: " << strerror(errno);
  ASSERT_EQ(ftruncate(memfd.get(), 2 * kMiB), 0);
  ASSERT_EQ(fcntl(memfd.get(), F_ADD_SEALS, kNeededSeals), 0);
  ExpectRefused(Map(memfd, 2 * kMiB), kInvalid, "MFD_HUGETLB");
}

TEST_F(RegionTest, RefusesADescriptorOpenForReadingAloneUnlessReadOnly) {
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  const std::string path = "/proc/self/fd/" + std::to_string(memfd.get());
  const FileDescriptor readable(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ExpectRefused(Map(readable, PageBytes()), kPrecondition, "may not be mapped to be written");
  EXPECT_TRUE(Map(readable, PageBytes(), /*read_only=*/true).ok());
}

TEST_F(RegionTest, KnowsTheSameMemoryAgain) {
  const FileDescriptor one = MakeMemfd(PageBytes());
  const FileDescriptor other = MakeMemfd(PageBytes());
  const auto a = Region::Map(one.get(), PageBytes(), false);
  const auto b = Region::Map(one.get(), PageBytes(), true);
  const auto c = Region::Map(other.get(), PageBytes(), false);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ((*a)->file(), (*b)->file());
  EXPECT_THAT((*a)->file(), Not((*c)->file()));
}

TEST_F(RegionTest, AHoleReadsAsZerosAndBreaksNothing) {
  for (const bool read_only : {false, true}) {
    const FileDescriptor memfd = MakeMemfd(4 * PageBytes());
    Fill(memfd, 1);
    ASSERT_TRUE(Map(memfd, 4 * PageBytes(), read_only).ok());
    PunchHole(memfd, PageBytes(), 2 * PageBytes());
    EXPECT_TRUE(IsFilled(region_->data(), PageBytes(), 1));
    EXPECT_TRUE(IsFilled(region_->data() + PageBytes(), 2 * PageBytes(), 0));
    EXPECT_TRUE(IsFilled(region_->data() + 3 * PageBytes(), PageBytes(), 1));
    if (!read_only) {
      PunchHole(memfd, 0, 4 * PageBytes());
      region_->writable_data()[0] = std::byte{2};
      EXPECT_EQ(region_->data()[0], std::byte{2});
    }
    EXPECT_FALSE(region_->broken());
  }
}

}  // namespace
}  // namespace gradclip
