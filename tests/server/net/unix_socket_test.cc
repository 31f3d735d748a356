#include "server/net/unix_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/server/shm/memory_client.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

class UnixSocketTest : public testing::Test {
 protected:
  UnixSocketTest() {
    std::string folder = testing::TempDir() + "gradclip-XXXXXX";
    folder_ = mkdtemp(folder.data());
    path_ = folder_ / "socket";
  }
  ~UnixSocketTest() override { std::filesystem::remove_all(folder_); }

  static absl::StatusOr<ListeningSocket> Listen(const std::string& path) {
    return ListeningSocket::Listen(path, 0600, "--flag");
  }

  static void ExpectRefused(const std::string& path, const std::string& text) {
    const absl::Status status = Listen(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("cannot listen on " + path + ": "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_THAT(std::string(status.message()), HasSubstr("--flag"));
  }

  // A socket whose process has gone without removing it.
  void LeaveBehind() {
    const FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(listen(socket.get(), 1), 0);
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(UnixSocketTest, SeesWhoIsBehindAFile) {
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kMissing);
  EXPECT_EQ(LookAtSocket(folder_ / "no folder" / "socket"), SocketFile::kMissing);
  EXPECT_EQ(LookAtSocket(folder_), SocketFile::kOther);
  LeaveBehind();
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kLeftBehind);
  const auto socket = Listen(path_);
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kAnswered);
}

TEST_F(UnixSocketTest, ReplacesASocketThatWasLeftBehind) {
  LeaveBehind();
  {
    const auto socket = Listen(path_);
    ASSERT_TRUE(socket.ok()) << socket.status();
    const MemoryClient client(path_);
  }
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kMissing);
}

TEST_F(UnixSocketTest, TakesNobodysPlace) {
  const auto first = Listen(path_);
  ASSERT_TRUE(first.ok());
  ExpectRefused(path_, "another process does");
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kAnswered);
}

TEST_F(UnixSocketTest, ReplacesNoFileThatIsNoSocket) {
  std::ofstream(path_) << "precious";
  ExpectRefused(path_, "something else is there");
  std::filesystem::create_symlink(folder_ / "nowhere", folder_ / "link");
  ExpectRefused(folder_ / "link", "something else is there");
  EXPECT_EQ(std::filesystem::file_size(path_), 8);
}

TEST_F(UnixSocketTest, NeedsAFolderAndAPathThatFits) {
  ExpectRefused(folder_ / "no folder" / "socket", "No such file");
  ExpectRefused("", "1 to 107 bytes");
  ExpectRefused("/" + std::string(107, 'x'), "1 to 107 bytes");
}

TEST_F(UnixSocketTest, LeavesAFileThatIsNoLongerItsOwn) {
  auto first = Listen(path_);
  ASSERT_TRUE(first.ok());
  std::filesystem::remove(path_);
  const auto second = Listen(path_);
  ASSERT_TRUE(second.ok());
  { const ListeningSocket gone = *std::move(first); }
  EXPECT_EQ(LookAtSocket(path_), SocketFile::kAnswered);
}

}  // namespace
}  // namespace gradclip
