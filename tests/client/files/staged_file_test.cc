#include "client/files/staged_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <vector>

#include "tests/client/files/file_bytes.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

absl::Status Write(const std::string& path, std::string_view text) {
  absl::StatusOr<StagedFile> staged = StagedFile::Create(path, AsBytes(text));
  return staged.ok() ? staged->Commit() : staged.status();
}

mode_t ModeOf(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST(StagedFile, IsNotThereUntilItIsCommitted) {
  const Folder folder;
  absl::StatusOr<StagedFile> staged = StagedFile::Create(folder / "a", AsBytes("text"));
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_FALSE(std::filesystem::exists(folder / "a"));
  ASSERT_TRUE(staged->Commit().ok());
  EXPECT_EQ(ReadFile(folder / "a"), "text");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(StagedFile, TellsHowManyBytesAreWritten) {
  const Folder folder;
  const std::string text(20'000'000, 'x');
  std::vector<uint64_t> seen;
  const absl::StatusOr<StagedFile> staged = StagedFile::Create(
      folder / "a", AsBytes(text), [&](uint64_t bytes) { seen.push_back(bytes); });
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_THAT(seen, ::testing::ElementsAre(uint64_t{8} << 20, uint64_t{16} << 20, text.size()));
}

TEST(StagedFile, LeavesNothingWhereItIsNotCommitted) {
  const Folder folder;
  WriteFile(folder / "a", "before");
  {
    const absl::StatusOr<StagedFile> staged = StagedFile::Create(folder / "a", AsBytes("after"));
    ASSERT_TRUE(staged.ok()) << staged.status();
    EXPECT_EQ(folder.entries(), 2u);
  }
  EXPECT_EQ(folder.entries(), 1u);
  EXPECT_EQ(ReadFile(folder / "a"), "before");
}

TEST(StagedFile, GivesANewFileTheModeThatUmaskLeavesAndKeepsAnOldOnes) {
  const Folder folder;
  const mode_t before = umask(027);
  EXPECT_TRUE(Write(folder / "new", "x").ok());
  EXPECT_EQ(ModeOf(folder / "new"), 0640u);
  ASSERT_EQ(chmod((folder / "new").c_str(), 0604), 0);
  EXPECT_TRUE(Write(folder / "new", "y").ok());
  EXPECT_EQ(ModeOf(folder / "new"), 0604u);
  umask(before);
}

TEST(StagedFile, FollowsASymbolicLink) {
  const Folder folder;
  WriteFile(folder / "target", "before");
  std::filesystem::create_symlink("target", folder / "link");
  ASSERT_TRUE(Write(folder / "link", "after").ok());
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(ReadFile(folder / "target"), "after");
}

TEST(StagedFile, MakesTheFileThatASymbolicLinkLeadsTo) {
  const Folder folder;
  std::filesystem::create_directory(folder / "there");
  std::filesystem::create_symlink("there/link", folder / "link");
  std::filesystem::create_symlink("target", folder / "there/link");
  ASSERT_TRUE(Write(folder / "link", "made").ok());
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "there/link"));
  EXPECT_EQ(ReadFile(folder / "there/target"), "made");

  std::filesystem::create_symlink("none/target", folder / "lost");
  EXPECT_THAT(Write(folder / "lost", "x").message(),
              HasSubstr("there is no folder " + folder / "none"));
  std::filesystem::create_symlink("loop", folder / "loop");
  EXPECT_FALSE(Write(folder / "loop", "x").ok());
}

TEST(StagedFile, RefusesWhatIsNoRegularFile) {
  const Folder folder;
  EXPECT_THAT(Write(folder / "", "x").message(), HasSubstr("it is a folder"));
  EXPECT_THAT(Write("/dev/null", "x").message(), HasSubstr("it is no regular file"));
  EXPECT_THAT(Write("", "x").message(), HasSubstr("empty"));
  EXPECT_THAT(Write(folder / "none/a", "x").message(), HasSubstr("there is no folder"));
  WriteFile(folder / "file", "x");
  EXPECT_FALSE(Write(folder / "file/a", "x").ok());
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(StagedFile, CommitsSeveralTogether) {
  const Folder folder;
  std::vector<StagedFile> files;
  for (const char* name : {"a", "b", "c"}) {
    absl::StatusOr<StagedFile> staged = StagedFile::Create(folder / name, AsBytes(name));
    ASSERT_TRUE(staged.ok()) << staged.status();
    files.push_back(*std::move(staged));
  }
  ASSERT_TRUE(StagedFile::CommitAll(files).ok());
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(ReadFile(folder / name), name);
  EXPECT_EQ(folder.entries(), 3u);
}

TEST(StagedFile, LeavesTheOldFileWhereTheDiskRefusesTheBytes) {
  const Folder folder;
  WriteFile(folder / "a", "before");
  // A limit on the size of files stands for a full disk.
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small { 4096, before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = Write(folder / "a", std::string(10'000, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_THAT(status.message(), HasSubstr("can't write " + folder / "a"));
  EXPECT_EQ(ReadFile(folder / "a"), "before");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(StagedFileDeathTest, IsRemovedForAProcessThatASignalEnds) {
  const Folder folder;
  EXPECT_EXIT(
      {
        const auto staged = StagedFile::Create(folder / "a", AsBytes("text"));
        const bool was_there = staged.ok() && folder.entries() == 1;
        RemoveStagedFiles();
        _exit(was_there && folder.entries() == 0 ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
  EXPECT_EQ(folder.entries(), 0u);
}

}  // namespace
}  // namespace gradclip
