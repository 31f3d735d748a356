#include "server/shm/memory_socket.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "tests/server/shm/fake_devices.h"
#include "tests/server/shm/memory_socket_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;

// A registration of FakeDevices' memory.
std::string OfCudaMemory(uint64_t offset, uint64_t length, uint16_t flags = 0) {
  return RegistrationBytes({.magic = Registration::Magic(),
                            .kind = Registration::kCudaMemory,
                            .flags = flags,
                            .length = length,
                            .offset = offset}) +
         FakeDevices::AllocationBytes();
}

TEST_F(MemorySocketTest, RegistersMemoryForAsLongAsTheConnectionLives) {
  Listen();
  RegionToken token;
  {
    const FileDescriptor memfd = MakeMemfd(3 * kMiB);
    Fill(memfd, 5);
    MemoryClient client = Connect();
    const auto answer = client.Register(memfd, 3 * kMiB);
    ExpectOk(answer);
    token = answer->token;
    const std::shared_ptr<Region> region = registry_->Find(token);
    ASSERT_NE(region, nullptr);
    EXPECT_TRUE(IsFilled(region->data(), region->size(), 5));
    EXPECT_FALSE(region->read_only());
    EXPECT_EQ(budget_.used_bytes(), 3 * kMiB);
  }
  EXPECT_TRUE(Await([&] { return registry_->Find(token) == nullptr; }));
  EXPECT_TRUE(Await([&] { return budget_.used_bytes() == 0; }));
}

TEST_F(MemorySocketTest, ARegionInUseStaysMappedAfterItsConnectionHasClosed) {
  Listen();
  RegionToken token;
  MemoryClient client = Registered(kMiB, &token);
  std::shared_ptr<Region> used = registry_->Find(token);
  client.Close();
  EXPECT_TRUE(Await([&] { return registry_->Find(token) == nullptr; }));
  EXPECT_TRUE(IsFilled(used->data(), used->size(), 0));
  EXPECT_EQ(budget_.used_bytes(), kMiB);
  used.reset();
  EXPECT_EQ(budget_.used_bytes(), 0);
}

TEST_F(MemorySocketTest, ClosesAHalfClosedConnectionOnceNobodyUsesItsRegions) {
  Listen();
  RegionToken token;
  MemoryClient client = Registered(kMiB, &token);
  std::shared_ptr<Region> used = registry_->Find(token);
  shutdown(client.socket(), SHUT_WR);
  EXPECT_TRUE(Await([&] { return registry_->Find(token) == nullptr; }));
  // Others are served meanwhile, several times over what it takes to look again.
  for (int i = 0; i < 20; ++i) Registered(kMiB);
  char byte;
  EXPECT_EQ(recv(client.socket(), &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, EAGAIN);
  used.reset();
  EXPECT_TRUE(client.AwaitEnd());

  // One who does not wait is not waited for.
  client = Registered(kMiB, &token);
  used = registry_->Find(token);
  shutdown(client.socket(), SHUT_WR);
  EXPECT_TRUE(Await([&] { return registry_->Find(token) == nullptr; }));
  client.Close();
  EXPECT_TRUE(AwaitConnections(0));
}

TEST_F(MemorySocketTest, RegistersSeveralOneAfterAnother) {
  Listen();
  MemoryClient client = Connect();
  for (uint64_t count = 1; count <= 5; ++count) {
    ExpectOk(client.Register(MakeMemfd(count * kMiB), count * kMiB, count % 2));
    EXPECT_EQ(registry_->regions(), count);
  }
  client.Close();
  EXPECT_TRUE(AwaitConnections(0));
  EXPECT_EQ(registry_->regions(), 0);
}

TEST_F(MemorySocketTest, ReadOnlyRegionsCannotBeWritten) {
  Listen();
  MemoryClient client = Connect();
  const auto answer =
      client.Register(MakeMemfd(kMiB, kNeededSeals | F_SEAL_WRITE), kMiB, Registration::kReadOnly);
  ExpectOk(answer);
  EXPECT_TRUE(registry_->Find(answer->token)->read_only());
}

TEST_F(MemorySocketTest, TakesARegistrationByteByByte) {
  Listen();
  MemoryClient client = Connect();
  const FileDescriptor memfd = MakeMemfd(kMiB);
  const std::string bytes = RegistrationBytes(kMiB);
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_TRUE(
        client.Send(bytes.substr(i, 1), i == 20 ? std::vector{memfd.get()} : std::vector<int>{}));
    ASSERT_TRUE(Await([&] { return client.IsTaken(); }));
  }
  ExpectOk(client.Receive());
}

// One line each for what is refused for what it is, after which the next may be right.
TEST_F(MemorySocketTest, ARefusalLeavesTheConnectionForAnother) {
  Listen({1024, 1024, 1024 * kMiB, 4 * kMiB});
  MemoryClient client = Connect();
  const FileDescriptor right = MakeMemfd(kMiB);
  ExpectRefused(client.Register(MakeMemfd(kMiB, F_SEAL_SHRINK), kMiB), kInvalid, "F_SEAL_GROW");
  ExpectRefused(client.Register(right, kMiB + 1), kInvalid, "says 1048577 bytes");
  ExpectRefused(client.Register(right, 0), kInvalid, "says 0 bytes");
  ExpectRefused(client.Register(MakeMemfd(kMiB, kNeededSeals | F_SEAL_WRITE), kMiB),
                absl::StatusCode::kFailedPrecondition, "flag 1 (read only)");
  ExpectRefused(client.Register(MakeMemfd(5 * kMiB), 5 * kMiB), kExhausted,
                "--max-shared-bytes-per-peer");
  const FileDescriptor folder(open("/", O_RDONLY | O_CLOEXEC));
  ExpectRefused(client.Register(folder, kMiB), kInvalid, "no memfd");
  ASSERT_TRUE(client.Send(RegistrationBytes(kMiB)));
  ExpectRefused(client.Receive(), kInvalid, "0 descriptors");
  ASSERT_TRUE(client.Send(RegistrationBytes(kMiB), {right.get(), right.get()}));
  ExpectRefused(client.Receive(), kInvalid, "2 descriptors");
  ASSERT_TRUE(client.Send(OfCudaMemory(0, 4096)));
  ExpectRefused(client.Receive(), absl::StatusCode::kUnimplemented, "--allow-cuda-ipc");
  ExpectOk(client.Register(right, kMiB));
  EXPECT_EQ(registry_->bytes(), kMiB);
}

TEST_F(MemorySocketTest, RegistersCudaMemoryForAsLongAsTheConnectionLives) {
  FakeDevices devices;
  registry_.emplace(limits_, budget_, &devices);
  Listen();
  RegionToken token;
  {
    MemoryClient client = Connect();
    ASSERT_TRUE(client.Send(OfCudaMemory(96, 4000)));
    const auto answer = client.Receive();
    ExpectOk(answer);
    token = answer->token;
    const std::shared_ptr<Region> region = registry_->Find(token);
    ASSERT_NE(region, nullptr);
    ASSERT_NE(region->device_memory(), nullptr);
    EXPECT_EQ(region->origin(), 96u);
    EXPECT_EQ(region->size(), 4000u);
    EXPECT_FALSE(region->read_only());
    EXPECT_EQ(registry_->bytes(), 4000u);
    EXPECT_EQ(budget_.used_bytes(), 0u);
    ExpectOk(client.Register(MakeMemfd(kMiB), kMiB));
    ASSERT_TRUE(client.Send(OfCudaMemory(0, 4096, Registration::kReadOnly)));
    const auto second = client.Receive();
    ExpectOk(second);
    EXPECT_TRUE(registry_->Find(second->token)->read_only());
    EXPECT_EQ(devices.open(), 2u);
  }
  EXPECT_TRUE(Await([&] { return registry_->Find(token) == nullptr; }));
  EXPECT_TRUE(Await([&] { return registry_->bytes() == 0; }));
  socket_.reset();
  EXPECT_EQ(devices.open(), 0u);
}

TEST_F(MemorySocketTest, ARefusalOfCudaMemoryLeavesTheConnectionForAnother) {
  FakeDevices devices;
  registry_.emplace(limits_, budget_, &devices);
  Listen();
  MemoryClient client = Connect();
  ASSERT_TRUE(client.Send(OfCudaMemory(97, 4000)));
  ExpectRefused(client.Receive(), kInvalid, "no such memory");
  const std::string start = OfCudaMemory(0, 8).substr(0, Registration::kBytes);
  ASSERT_TRUE(client.Send(start + FakeDevices::AllocationBytes(std::byte{1})));
  ExpectRefused(client.Receive(), absl::StatusCode::kFailedPrecondition, "no such GPU");
  const FileDescriptor memfd = MakeMemfd(kMiB);
  ASSERT_TRUE(client.Send(OfCudaMemory(0, 8), {memfd.get()}));
  ExpectRefused(client.Receive(), kInvalid, "descriptors");
  EXPECT_EQ(registry_->bytes(), 0u);
  ASSERT_TRUE(client.Send(OfCudaMemory(0, 8)));
  ExpectOk(client.Receive());
  client.Close();
  EXPECT_TRUE(AwaitConnections(0));
  EXPECT_EQ(devices.open(), 0u);
}

TEST_F(MemorySocketTest, WhatIsNoRegistrationEndsTheConnectionAndItsRegions) {
  Listen();
  const FileDescriptor memfd = MakeMemfd(kMiB);
  Registration right{.magic = Registration::Magic(), .length = kMiB};
  std::vector<std::string> wrong;
  for (const auto change : std::initializer_list<void (*)(Registration&)>{
           [](Registration& r) { r.version = 2; }, [](Registration& r) { r.kind = 9; },
           [](Registration& r) { r.flags = 2; }, [](Registration& r) { r.offset = 1; },
           [](Registration& r) { r.magic = 0; }}) {
    Registration changed = right;
    change(changed);
    wrong.push_back(RegistrationBytes(changed));
  }
  wrong.push_back(RegistrationBytes(right) + RegistrationBytes(right));
  wrong.push_back("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");  // somebody's gRPC channel
  wrong.push_back(std::string(100'000, '\xff'));
  for (const std::string& bytes : wrong) {
    MemoryClient client = Registered(kMiB);
    EXPECT_EQ(registry_->regions(), 1);
    client.Send(bytes, {memfd.get()});
    ExpectRefused(client.Receive(), kInvalid, "");
    EXPECT_TRUE(client.AwaitEnd());
    EXPECT_TRUE(AwaitConnections(0));
    EXPECT_EQ(registry_->regions(), 0);
  }
}

TEST_F(MemorySocketTest, EndsConnectionsThatNeverRegister) {
  options_.idle_timeout = absl::Milliseconds(50);
  Listen();
  MemoryClient idle = Connect();
  EXPECT_TRUE(idle.AwaitEnd());
  // Being refused again and again gives no more time.
  MemoryClient busy = Connect();
  const bool ended =
      Await([&] { return !busy.Send(RegistrationBytes(1)) || !busy.Receive().has_value(); });
  EXPECT_TRUE(ended);
}

TEST_F(MemorySocketTest, EndsConnectionsWhoseRegistrationStopsHalfway) {
  options_.idle_timeout = absl::Milliseconds(500);
  Listen();
  const size_t open_before = OpenDescriptors();
  {
    MemoryClient client = Registered(kMiB);
    const FileDescriptor memfd = MakeMemfd(kMiB);
    ASSERT_TRUE(client.Send(RegistrationBytes(kMiB).substr(0, 31), {memfd.get()}));
    EXPECT_TRUE(client.AwaitEnd());
    EXPECT_TRUE(AwaitConnections(0));
    EXPECT_EQ(registry_->regions(), 0);
  }
  EXPECT_EQ(OpenDescriptors(), open_before);
}

TEST_F(MemorySocketTest, KeepsConnectionsThatHaveARegion) {
  options_.idle_timeout = absl::Seconds(1);
  Listen();
  RegionToken token;
  MemoryClient client = Registered(kMiB, &token);
  MemoryClient idle = Connect();  // later than the one with a region, and ended
  EXPECT_TRUE(idle.AwaitEnd());
  EXPECT_NE(registry_->Find(token), nullptr);
  ExpectOk(client.Register(MakeMemfd(kMiB), kMiB));
}

TEST_F(MemorySocketTest, EndsConnectionsThatDoNotReadTheirAnswers) {
  options_.idle_timeout = absl::Seconds(1);
  Listen();
  MemoryClient client = Registered(kMiB);
  // Each is refused, until no further answer has room and the server reads no more.
  const bool ended = Await([&] {
    return !client.Send(RegistrationBytes(1)) ||
           !Await([&] { return client.IsTaken() || socket_->connections() == 0; });
  });
  EXPECT_TRUE(ended);
  EXPECT_TRUE(AwaitConnections(0));
  EXPECT_THAT(ReadLog(), HasSubstr("idle for longer"));
}

TEST_F(MemorySocketTest, LimitsConnectionsThatHaveNoRegion) {
  options_.max_pending_registrations = 2;
  Listen();
  MemoryClient first = Connect();
  MemoryClient second = Connect();
  ASSERT_TRUE(AwaitConnections(2));
  MemoryClient third = Connect();
  ExpectRefused(third.Receive(), kExhausted,
                "2 connections have registered nothing yet, of at most 2 "
                "(--max-pending-registrations)");
  EXPECT_TRUE(third.AwaitEnd());
  ExpectOk(first.Register(MakeMemfd(kMiB), kMiB));  // makes room
  Registered(kMiB);
}

TEST_F(MemorySocketTest, NamesEachLimitOfRegions) {
  Listen({2, 1024, 1024 * kMiB, 1024 * kMiB});
  MemoryClient client = Connect();
  ExpectOk(client.Register(MakeMemfd(kMiB), kMiB));
  ExpectOk(client.Register(MakeMemfd(kMiB), kMiB));
  ExpectRefused(client.Register(MakeMemfd(kMiB), kMiB), kExhausted, "(--max-regions)");
  MemoryBudget::Reservation rest;
  client.Close();
  ASSERT_TRUE(Await([&] { return budget_.TryReserve("", 1023 * kMiB + 1, &rest); }));
  client = Connect();
  ExpectRefused(client.Register(MakeMemfd(kMiB), kMiB), kExhausted, "(--memory-budget)");
  rest.Release();
  ExpectOk(client.Register(MakeMemfd(kMiB), kMiB));
}

TEST_F(MemorySocketTest, RefusesOtherUsers) {
  options_.uids = {geteuid() + 1};
  Listen();
  MemoryClient client = Connect();
  ExpectRefused(client.Receive(), absl::StatusCode::kPermissionDenied,
                "user " + std::to_string(geteuid()) + " may not");
  EXPECT_TRUE(client.AwaitEnd());
}

TEST_F(MemorySocketTest, IsForItsOwnUserUnlessOthersAreNamed) {
  const auto mode = [&] { return std::filesystem::status(options_.path).permissions(); };
  Listen();
  EXPECT_EQ(mode(), std::filesystem::perms(0600));
  Registered(kMiB);
  socket_.reset();
  options_.uids = {geteuid(), geteuid() + 1};
  Listen();
  EXPECT_EQ(mode(), std::filesystem::perms(0666));
  Registered(kMiB);
}

TEST_F(MemorySocketTest, WaitsWhereThereAreNoDescriptorsLeft) {
  Listen();
  // The first time that a kind of object is used, UndefinedBehaviorSanitizer looks at it through a
  // pipe: let it see those of the log while there are descriptors for one.
  log_->Warning("warmed up", {{"reason", "a test"}});
  ASSERT_TRUE(Await([&] { return LogSoFar().find("warmed up") != std::string::npos; }));
  MemoryClient client = Connect();
  ASSERT_TRUE(AwaitConnections(1));
  const FileDescriptor memfd = MakeMemfd(kMiB);
  FileDescriptor unconnected(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(FileDescriptor(dup(0)).get());  // the lowest that is free
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  // One that is there already is told, whether it sends its memfd or somebody else connects.
  const auto answer = client.Register(memfd, kMiB);
  MemoryClient later(options_.path, std::move(unconnected));
  later.Send(RegistrationBytes(kMiB), {memfd.get()});
  const bool tried = Await([&] { return LogSoFar().find("cannot accept") != std::string::npos; });
  const auto still = client.Register(memfd, kMiB);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ExpectRefused(answer, kExhausted, "ulimit -n");
  ExpectRefused(still, kExhausted, "ulimit -n");
  EXPECT_TRUE(tried);
  ExpectOk(later.Receive());
  ExpectOk(client.Register(memfd, kMiB));
  const std::string log = ReadLog();
  const size_t warning = log.find("cannot accept");
  EXPECT_NE(warning, std::string::npos);
  EXPECT_EQ(log.find("cannot accept", warning + 1), std::string::npos);  // once
}

TEST_F(MemorySocketTest, AThousandConnectionsLeaveNothingBehind) {
  Listen();
  const FileDescriptor memfd = MakeMemfd(kMiB);
  const size_t open_before = OpenDescriptors();
  for (int i = 0; i < 1000; ++i) {
    MemoryClient client = Connect();
    ExpectOk(client.Register(memfd, kMiB));
    if (i % 3 == 0) ExpectRefused(client.Register(memfd, 1), kInvalid, "");
    if (i % 3 == 1) client.Send("GRADCLIP", {memfd.get()});
  }
  EXPECT_TRUE(AwaitConnections(0));
  EXPECT_EQ(OpenDescriptors(), open_before);
  EXPECT_EQ(MemfdMappings(), 0);
  EXPECT_EQ(budget_.used_bytes(), 0);
}

TEST_F(MemorySocketTest, StopsWithConnectionsOpen) {
  Listen();
  MemoryClient registered = Registered(kMiB);
  MemoryClient idle = Connect();
  socket_.reset();
  EXPECT_EQ(registry_->regions(), 0);
  EXPECT_TRUE(registered.AwaitEnd());
  EXPECT_TRUE(idle.AwaitEnd());
  EXPECT_FALSE(std::filesystem::exists(options_.path));
}

TEST_F(MemorySocketTest, SaysWhyItCannotListen) {
  Listen();
  const absl::Status twice = MemorySocket::Listen(options_, *registry_, *log_).status();
  EXPECT_EQ(twice.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(twice.message()),
              AllOf(HasSubstr("cannot listen on " + options_.path),
                    HasSubstr("another process does"), HasSubstr("--memory-socket")));
}

TEST_F(MemorySocketTest, LogsWhatHappensButNoToken) {
  Listen();
  RegionToken token;
  MemoryClient client = Registered(kMiB, &token);
  ExpectRefused(client.Register(MakeMemfd(kMiB), 7), kInvalid, "");
  client.Close();
  ASSERT_TRUE(AwaitConnections(0));
  const std::string log = ReadLog();
  const std::string peer = "uid=" + std::to_string(geteuid()) + " pid=" + std::to_string(getpid());
  EXPECT_THAT(
      log, HasSubstr("memory registered " + peer + " memory=memfd bytes=1048576 read_only=false"));
  EXPECT_THAT(log, HasSubstr("memory registration refused " + peer + " status=INVALID_ARGUMENT"));
  EXPECT_THAT(log, HasSubstr("memory connection closed " + peer + " regions=1 bytes=1048576"));
  std::string hex;
  for (const std::byte byte : token) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += kDigits[std::to_integer<int>(byte) >> 4];
    hex += kDigits[std::to_integer<int>(byte) & 15];
  }
  EXPECT_THAT(log, Not(HasSubstr(hex)));
}

}  // namespace
}  // namespace gradclip
