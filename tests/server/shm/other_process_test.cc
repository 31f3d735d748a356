// What other processes can do to the memory socket: end at any moment, be somebody else's.
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <csignal>
#include <functional>
#include <string>
#include <utility>

#include "tests/server/shm/memory_socket_fixture.h"

namespace gradclip {
namespace {

// A child process that waits, does its part and then waits to be killed. Made while no socket
// listens, so that no thread is at anything, and told afterwards when to begin. Not thread-safe.
class OtherProcess {
 public:
  // `part` runs in the child, and neither allocates nor uses gtest. True: it has gone well.
  explicit OtherProcess(const std::function<bool()>& part) {
    int begin[2];
    int done[2];
    EXPECT_EQ(pipe(begin), 0);
    EXPECT_EQ(pipe(done), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(begin[1]);
      char byte = 0;
      if (read(begin[0], &byte, 1) != 1) _exit(1);
      byte = part() ? 'y' : 'n';
      if (write(done[1], &byte, 1) != 1) _exit(1);
      while (true) pause();
    }
    close(begin[0]);
    close(done[1]);
    begin_ = FileDescriptor(begin[1]);
    done_ = FileDescriptor(done[0]);
  }
  ~OtherProcess() { Kill(); }

  // Waits until its part is done. Whether it has gone well.
  bool Run() {
    char byte = 0;
    return write(begin_.get(), "g", 1) == 1 && read(done_.get(), &byte, 1) == 1 && byte == 'y';
  }

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(std::exchange(pid_, -1), nullptr, 0);
  }

  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  FileDescriptor begin_;
  FileDescriptor done_;
};

// For the child: a connection that lives as long as the process. Negative: none.
int ConnectTo(const std::string& path) {
  const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const bool connected =
      connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  return connected ? connection : -1;
}

// For the child: the status of the next answer; negative where there is none.
int ReceiveStatus(int connection) {
  uint32_t status = 0;
  const bool received =
      recv(connection, &status, sizeof(status), MSG_WAITALL) == ssize_t{sizeof(status)};
  return received ? static_cast<int>(status) : -1;
}

using SocketOfAKilledClient = MemorySocketTest;

TEST_F(SocketOfAKilledClient, ForgetsItsRegionsWhateverItWasAt) {
  constexpr int kStages = 6;
  const FileDescriptor memfd = MakeMemfd(kMiB);
  const int fds[] = {memfd.get()};
  const std::string right = RegistrationBytes(kMiB);
  const std::string part = right.substr(0, 31);
  for (int stage = 0; stage < kStages; ++stage) {
    OtherProcess client([&, stage] {
      const int connection = ConnectTo(options_.path);
      if (connection < 0) return false;
      if (stage == 0) return true;  // only connected
      if (stage == 1) return SendMessage(connection, part);
      if (stage == 2) return SendMessage(connection, part, fds);
      if (!SendMessage(connection, right, fds)) return false;
      if (stage == 3) return true;  // answer not read
      if (ReceiveStatus(connection) != 0) return false;
      if (stage == 4) return true;  // registered
      char rest[RegistrationAnswer::kBytes - sizeof(uint32_t)];
      return recv(connection, rest, sizeof(rest), MSG_WAITALL) == ssize_t{sizeof(rest)} &&
             SendMessage(connection, part, fds);  // halfway to another
    });
    Listen();
    const size_t open_before = OpenDescriptors();
    ASSERT_TRUE(client.Run()) << stage;
    const uint64_t regions = stage < 3 ? 0 : 1;
    EXPECT_TRUE(Await([&] { return registry_->regions() == regions; }));
    EXPECT_TRUE(AwaitConnections(1));
    client.Kill();
    EXPECT_TRUE(AwaitConnections(0)) << stage;
    EXPECT_EQ(registry_->regions(), 0);
    EXPECT_EQ(budget_.used_bytes(), 0);
    EXPECT_EQ(MemfdMappings(), 0);
    EXPECT_EQ(OpenDescriptors(), open_before);
    socket_.reset();
  }
}

TEST_F(SocketOfAKilledClient, KeepsARegionThatIsInUse) {
  const FileDescriptor memfd = MakeMemfd(kMiB);
  Fill(memfd, 7);
  const int fds[] = {memfd.get()};
  // The token goes the way that it would: the child tells its parent.
  const std::string right = RegistrationBytes(kMiB);
  int token_pipe[2];
  ASSERT_EQ(pipe(token_pipe), 0);
  OtherProcess client([&] {
    const int connection = ConnectTo(options_.path);
    std::array<std::byte, RegistrationAnswer::kBytes> answer;
    return SendMessage(connection, right, fds) &&
           recv(connection, answer.data(), answer.size(), MSG_WAITALL) == ssize_t{answer.size()} &&
           write(token_pipe[1], answer.data() + 8, sizeof(RegionToken)) ==
               ssize_t{sizeof(RegionToken)};
  });
  const FileDescriptor reader(token_pipe[0]);
  const FileDescriptor writer(token_pipe[1]);
  Listen();
  ASSERT_TRUE(client.Run());
  RegionToken token;
  ASSERT_EQ(read(reader.get(), token.data(), token.size()), ssize_t{sizeof(token)});
  std::shared_ptr<Region> used = registry_->Find(token);
  ASSERT_NE(used, nullptr);
  client.Kill();
  EXPECT_TRUE(AwaitConnections(0));
  EXPECT_EQ(registry_->Find(token), nullptr);
  EXPECT_TRUE(IsFilled(used->data(), used->size(), 7));
  EXPECT_FALSE(used->broken());
  used.reset();
  EXPECT_EQ(budget_.used_bytes(), 0);
}

TEST_F(MemorySocketTest, KnowsWhoConnects) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  constexpr uid_t kNobody = 65534;
  const FileDescriptor memfd = MakeMemfd(kMiB);
  const int fds[] = {memfd.get()};
  const std::string right = RegistrationBytes(kMiB);
  const auto connect_as_nobody = [&](int expected_status) {
    return [&, expected_status] {
      if (setresuid(kNobody, kNobody, kNobody) != 0) return false;
      const int connection = ConnectTo(options_.path);
      if (connection < 0) return expected_status < 0;  // the file's rights
      SendMessage(connection, right, fds);
      return ReceiveStatus(connection) == expected_status;
    };
  };
  OtherProcess shut_out(connect_as_nobody(-1));
  OtherProcess foreign(connect_as_nobody(static_cast<int>(absl::StatusCode::kPermissionDenied)));
  OtherProcess admitted(connect_as_nobody(0));

  Listen();
  EXPECT_TRUE(shut_out.Run());
  socket_.reset();

  options_.uids = {geteuid(), 12345};
  Listen();
  EXPECT_TRUE(foreign.Run());
  EXPECT_EQ(registry_->regions(), 0);
  socket_.reset();

  options_.uids = {kNobody};
  Listen();
  EXPECT_TRUE(admitted.Run());
  EXPECT_EQ(registry_->regions(), 1);
  const std::string log = ReadLog();
  EXPECT_THAT(log, testing::HasSubstr("memory connection refused uid=65534 pid=" +
                                      std::to_string(foreign.pid())));
  EXPECT_THAT(
      log, testing::HasSubstr("memory registered uid=65534 pid=" + std::to_string(admitted.pid())));
}

}  // namespace
}  // namespace gradclip
