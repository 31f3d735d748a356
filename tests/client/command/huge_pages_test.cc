#include "client/command/huge_pages.h"

#include <gmock/gmock.h>

#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

TEST(HugePages, SaysWhatToSetWhereMemfdsGetNone) {
  EXPECT_EQ(
      HugePagesText("always within_size advise [never] deny force\n"),
      "no: /sys/kernel/mm/transparent_hugepage/shmem_enabled is never; shared memory is faster "
      "where it is advise");
  EXPECT_THAT(HugePagesText("always within_size advise never [deny] force\n"),
              ::testing::HasSubstr("is deny"));
}

TEST(HugePages, SaysThatMemfdsGetThem) {
  EXPECT_EQ(HugePagesText("always within_size [advise] never deny force\n"),
            "yes: /sys/kernel/mm/transparent_hugepage/shmem_enabled is advise");
  EXPECT_EQ(HugePagesText("[always] within_size advise never deny force\n"),
            "yes: /sys/kernel/mm/transparent_hugepage/shmem_enabled is always");
}

TEST(HugePages, SaysNothingOfWhatItCantRead) {
  for (const char* setting : {"", "never", "[never", "]never["}) {
    EXPECT_EQ(HugePagesText(setting), "") << setting;
  }
}

TEST(HugePages, KnowsASocketFromAFile) {
  const Folder folder;
  WriteFile(folder / "file", "x");
  EXPECT_FALSE(IsSocketHere(folder / "file"));
  EXPECT_FALSE(IsSocketHere(folder / "none"));
  EXPECT_FALSE(IsSocketHere(""));
}

}  // namespace
}  // namespace gradclip
