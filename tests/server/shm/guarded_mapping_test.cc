#include "server/shm/guarded_mapping.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

class GuardedMappingTest : public testing::Test {
 protected:
  ~GuardedMappingTest() override { EXPECT_EQ(MemfdMappings(), 0); }

  absl::StatusOr<std::unique_ptr<GuardedMapping>> Map(int file, uint64_t length, bool writable) {
    return GuardedMapping::Map(file, length, writable, MAP_SHARED, broken_);
  }

  static uint64_t AllocatedBytes(const FileDescriptor& memfd) {
    struct stat file = {};
    EXPECT_EQ(fstat(memfd.get(), &file), 0);
    return static_cast<uint64_t>(file.st_blocks) * 512;
  }

  std::atomic<bool> broken_ = false;
};

TEST_F(GuardedMappingTest, PopulatesEveryPage) {
  const uint64_t length = 2 * kMiB + 5 * PageBytes() + 1;
  for (const bool writable : {false, true}) {
    const FileDescriptor memfd = MakeMemfd(length);
    const auto mapping = Map(memfd.get(), length, writable);
    ASSERT_TRUE(mapping.ok());
    EXPECT_EQ(AllocatedBytes(memfd), 0);
    EXPECT_TRUE((*mapping)->Populate().ok());
    EXPECT_EQ(AllocatedBytes(memfd), WholePages(length));
    EXPECT_FALSE(broken_);
  }
}

TEST_F(GuardedMappingTest, TouchesEveryPageWhereTheSystemCannotPopulate) {
  const uint64_t length = 5 * PageBytes() + 1;
  for (const bool writable : {false, true}) {
    const FileDescriptor memfd = MakeMemfd(length);
    const auto mapping = Map(memfd.get(), length, writable);
    ASSERT_TRUE(mapping.ok());
    EXPECT_TRUE((*mapping)->TouchEveryPage().ok());
    EXPECT_EQ(AllocatedBytes(memfd), WholePages(length));
  }
}

TEST_F(GuardedMappingTest, FailsToPopulateWhatIsNotThere) {
  const uint64_t length = 5 * PageBytes();
  const FileDescriptor memfd = MakeMemfd(length, 0);
  const auto mapping = Map(memfd.get(), length, true);
  ASSERT_TRUE(mapping.ok());
  ASSERT_EQ(ftruncate(memfd.get(), static_cast<off_t>(PageBytes())), 0);
  EXPECT_EQ((*mapping)->Populate().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*mapping)->TouchEveryPage().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(GuardedMappingTest, RefusesDescriptorsThatAreNotOpenForIt) {
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  const std::string path = "/proc/self/fd/" + std::to_string(memfd.get());
  const FileDescriptor read_only(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(read_only.ok());
  EXPECT_TRUE(Map(read_only.get(), PageBytes(), false).ok());
  EXPECT_EQ(Map(read_only.get(), PageBytes(), true).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const FileDescriptor write_only(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(write_only.ok());
  EXPECT_EQ(Map(write_only.get(), PageBytes(), false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(GuardedMappingTest, RefusesWhatCannotBeMapped) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const FileDescriptor reader(ends[0]);
  const FileDescriptor writer(ends[1]);
  EXPECT_FALSE(Map(reader.get(), PageBytes(), false).ok());
  const FileDescriptor memfd = MakeMemfd(PageBytes());
  EXPECT_EQ(Map(memfd.get(), uint64_t{1} << 60, false).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(WholePages, RoundsUpAndSaturates) {
  EXPECT_EQ(WholePages(0), 0);
  EXPECT_EQ(WholePages(1), PageBytes());
  EXPECT_EQ(WholePages(PageBytes()), PageBytes());
  EXPECT_EQ(WholePages(PageBytes() + 1), 2 * PageBytes());
  EXPECT_EQ(WholePages(UINT64_MAX), UINT64_MAX);
}

}  // namespace
}  // namespace gradclip
