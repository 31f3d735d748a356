#include "client/gradclip/memory_link.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/gradclip/shared_memory.h"
#include "gmock/gmock.h"
#include "tests/client/files/file_bytes.h"
#include "tests/client/gradclip/fake_memory_socket.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class MemoryLinkTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<MemoryLink>> Register(
      bool read_only = false, absl::Time deadline = absl::InfiniteFuture()) const {
    return MemoryLink::Register(path_, MemoryLink::Memfd{memory_->memfd(), memory_->size()},
                                read_only, {}, deadline);
  }

  // What comes of an answer.
  absl::Status RefusalOf(FakeMemorySocket::Answer answer,
                         absl::Time deadline = absl::InfiniteFuture()) const {
    const FakeMemorySocket socket(path_, std::move(answer));
    const absl::Status status = Register(false, deadline).status();
    EXPECT_THAT(status.message(), HasSubstr("its memory socket " + path_ + ": "));
    return status;
  }

  sockaddr_un Address() const {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::copy(path_.begin(), path_.end(), address.sun_path);
    return address;
  }

  // A socket that listens at the path.
  int Listen(int queue) const {
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_un address = Address();
    EXPECT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener, queue), 0);
    return listener;
  }

  const Folder folder_;
  const std::string path_ = folder_ / "memory";
  absl::StatusOr<SharedMemory> memory_ = SharedMemory::Create(5000);
};

TEST_F(MemoryLinkTest, HandsTheMemoryOver) {
  const FakeMemorySocket socket(path_);
  memory_->data()[4999] = std::byte{7};
  const auto link = Register();
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_TRUE((*link)->Alive());
  EXPECT_FALSE((*link)->read_only());
  ASSERT_EQ(socket.regions().size(), 1u);
  const FakeRegion region = socket.regions()[0];
  EXPECT_EQ(region.registration.magic, Registration::Magic());
  EXPECT_EQ(region.registration.version, 1u);
  EXPECT_EQ(region.registration.kind, 1u);
  EXPECT_EQ(region.registration.flags, 0u);
  EXPECT_EQ(region.registration.length, 5000u);
  EXPECT_EQ(region.registration.offset, 0u);
  EXPECT_EQ(region.token, (*link)->token());
  EXPECT_EQ(region.data[4999], std::byte{7});
}

TEST_F(MemoryLinkTest, SaysThatTheServerMayOnlyRead) {
  const FakeMemorySocket socket(path_);
  const auto link = Register(/*read_only=*/true);
  ASSERT_TRUE(link.ok());
  EXPECT_TRUE((*link)->read_only());
  EXPECT_EQ(socket.regions()[0].registration.flags, Registration::kReadOnly);
}

TEST_F(MemoryLinkTest, HandsCudaMemoryOverByItsHandle) {
  const FakeMemorySocket socket(path_);
  CudaMemory memory = {.offset = 512, .bytes = 4096};
  memory.handle.fill(std::byte{5});
  memory.handle.back() = std::byte{6};
  memory.uuid.fill(std::byte{7});
  const auto link =
      MemoryLink::Register(path_, memory, /*read_only=*/true, {}, absl::InfiniteFuture());
  ASSERT_TRUE(link.ok()) << link.status();
  ASSERT_EQ(socket.regions().size(), 1u);
  const FakeRegion region = socket.regions()[0];
  EXPECT_EQ(region.registration.magic, Registration::Magic());
  EXPECT_EQ(region.registration.version, 1u);
  EXPECT_EQ(region.registration.kind, 2u);
  EXPECT_EQ(region.registration.flags, Registration::kReadOnly);
  EXPECT_EQ(region.registration.length, 4096u);
  EXPECT_EQ(region.registration.offset, 512u);
  EXPECT_EQ(region.allocation.handle, memory.handle);
  EXPECT_EQ(region.allocation.uuid, memory.uuid);
  EXPECT_EQ(region.token, (*link)->token());
}

TEST_F(MemoryLinkTest, FindsOutThatTheServerHasClosedIt) {
  FakeMemorySocket socket(path_);
  const auto link = Register();
  ASSERT_TRUE(link.ok());
  socket.CloseAll();
  EXPECT_FALSE((*link)->Alive());
}

TEST_F(MemoryLinkTest, WaitsUntilTheServerHasLetGo) {
  FakeMemorySocket socket(path_);
  const auto link = Register();
  ASSERT_TRUE(link.ok());
  std::atomic<bool> done = false;
  socket.BeforeClose([&done] { done = true; });
  EXPECT_TRUE((*link)->Release(absl::InfiniteDuration()));
  EXPECT_TRUE(done);
}

TEST_F(MemoryLinkTest, WaitsNoLongerThanItShould) {
  absl::Notification over;
  FakeMemorySocket socket(path_);
  const auto link = Register();
  ASSERT_TRUE(link.ok());
  socket.BeforeClose([&over] { over.WaitForNotification(); });
  EXPECT_FALSE((*link)->Release(absl::Milliseconds(20)));
  over.Notify();
}

TEST_F(MemoryLinkTest, GivesTheServersRefusal) {
  const absl::Status status = RefusalOf(FakeMemorySocket::Refuse(8, "1024 regions: --max-regions"));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr(": 1024 regions: --max-regions"));
  EXPECT_THAT(RefusalOf(FakeMemorySocket::Refuse(7, "\xff")).message(), HasSubstr("\\xff"));
}

TEST_F(MemoryLinkTest, GivesTheRefusalOfAServerThatDoesNotReadFirst) {
  const int listener = Listen(/*queue=*/8);
  constexpr int kTimes = 50;  // before and after the registration is sent
  std::thread server([listener] {
    const std::string no = FakeMemorySocket::Message(7, {}, "user 5 may not");
    for (int i = 0; i < kTimes; ++i) {
      const int accepted = accept(listener, nullptr, nullptr);
      send(accepted, no.data(), no.size(), MSG_NOSIGNAL);
      close(accepted);
    }
  });
  for (int i = 0; i < kTimes; ++i) {
    const absl::Status status = Register().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
    EXPECT_THAT(status.message(), HasSubstr("user 5 may not"));
  }
  server.join();
  close(listener);
}

TEST_F(MemoryLinkTest, RefusesAnswersThatAreNone) {
  const auto raw = [](const std::string& bytes) {
    return [bytes](int, const RegionToken&) { return bytes; };
  };
  const std::vector<std::string> answers = {
      std::string(24, 'x'),                     // a status of 2021161080
      FakeMemorySocket::Message(17, {}, "no"),  // the last one is 16
      FakeMemorySocket::Message(3, {}, std::string(1025, 'y')),
      FakeMemorySocket::Message(0, {}, ""),  // OK without a token
  };
  for (const std::string& answer : answers) {
    const absl::Status status = RefusalOf(raw(answer));
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    EXPECT_THAT(status.message(), HasSubstr("is no answer to a registration"));
  }
  EXPECT_EQ(RefusalOf(FakeMemorySocket::Refuse(3, std::string(1024, 'y'))).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(MemoryLinkTest, NoticesAnAnswerThatEndsEarly) {
  const std::string whole = FakeMemorySocket::Message(3, {}, "reason");
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{23}, size_t{24}, whole.size() - 1}) {
    const absl::Status status = RefusalOf([&](int connection, const RegionToken&) {
      send(connection, whole.data(), bytes, MSG_NOSIGNAL);
      shutdown(connection, SHUT_RDWR);
      return std::string();
    });
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << bytes << ": " << status;
    EXPECT_THAT(status.message(), HasSubstr("closed the connection before it had answered"));
  }
}

TEST_F(MemoryLinkTest, EndsAtTheDeadlineOfASilentServer) {
  const auto nothing = [](int, const RegionToken&) { return std::string(); };
  const auto half = [](int, const RegionToken& token) {
    return FakeMemorySocket::Message(0, token, "").substr(0, 12);
  };
  for (const FakeMemorySocket::Answer& answer : {FakeMemorySocket::Answer(nothing), {half}}) {
    const absl::Status status = RefusalOf(answer, absl::Now() + absl::Milliseconds(50));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  }
}

TEST_F(MemoryLinkTest, TakesAnAnswerThatComesByteByByte) {
  const FakeMemorySocket socket(path_, [](int connection, const RegionToken& token) {
    const std::string whole = FakeMemorySocket::Message(0, token, "welcome");
    for (const char byte : whole) send(connection, &byte, 1, MSG_NOSIGNAL);
    return std::string();
  });
  const auto link = Register();
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_TRUE((*link)->Alive());
}

TEST_F(MemoryLinkTest, SaysWhyNobodyAnswersAtAPath) {
  EXPECT_EQ(Register().status().message(),
            "its memory socket " + path_ + ": can't connect: No such file or directory");
  EXPECT_EQ(Register().status().code(), absl::StatusCode::kUnavailable);
  { const FakeMemorySocket socket(path_); }
  EXPECT_THAT(Register().status().message(), HasSubstr("Connection refused"));
  const auto link = MemoryLink::Register("/" + std::string(200, 'p'), MemoryLink::Memfd(),
                                         /*read_only=*/false, {}, absl::InfiniteFuture());
  EXPECT_THAT(link.status().message(), HasSubstr("its path has 201 bytes; the system allows 107"));
}

TEST_F(MemoryLinkTest, KnocksAgainWhereTheQueueIsFull) {
  const int listener = Listen(/*queue=*/0);
  const sockaddr_un address = Address();
  std::vector<int> waiting;
  while (true) {
    waiting.push_back(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const auto* const place = reinterpret_cast<const sockaddr*>(&address);
    if (connect(waiting.back(), place, sizeof(address)) != 0) break;
  }
  EXPECT_EQ(Register(false, absl::Now() + absl::Milliseconds(30)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  // Room is made, and then the socket says no.
  std::thread server([listener, count = waiting.size()] {
    for (size_t i = 0; i < count; ++i) {
      const int accepted = accept(listener, nullptr, nullptr);
      char registration[32];
      if (i + 1 == count) recv(accepted, registration, sizeof(registration), 0);
      const std::string no = FakeMemorySocket::Message(8, {}, "full");
      send(accepted, no.data(), no.size(), MSG_NOSIGNAL);
      close(accepted);
    }
  });
  EXPECT_EQ(Register().status().code(), absl::StatusCode::kResourceExhausted);
  server.join();
  for (const int one : waiting) close(one);
  close(listener);
}

TEST_F(MemoryLinkTest, HandsNothingToAStranger) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can make a socket of another user";
  constexpr uid_t kStranger = 12345;
  ASSERT_EQ(chmod((folder_ / "").c_str(), 0777), 0);
  ASSERT_EQ(seteuid(kStranger), 0);
  const FakeMemorySocket socket(path_);
  ASSERT_EQ(seteuid(0), 0);
  const absl::Status status = Register().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("it is of user 12345"), HasSubstr("server_uids")));
  EXPECT_EQ(socket.regions().size(), 0u);
  const auto link =
      MemoryLink::Register(path_, MemoryLink::Memfd{memory_->memfd(), memory_->size()},
                           /*read_only=*/false, {{1, kStranger}}, absl::InfiniteFuture());
  EXPECT_TRUE(link.ok()) << link.status();
}

}  // namespace
}  // namespace gradclip
