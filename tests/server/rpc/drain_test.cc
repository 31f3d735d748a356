// Draining, as callers see it: what becomes of calls that run, of replies on their way, and of new
// calls.
#include <gmock/gmock.h>
#include <grpcpp/create_channel_posix.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

// Stands between a client and a server, and passes what the server sends only when told to.
class Relay {
 public:
  // `address`: where the server listens.
  explicit Relay(const std::string& address) {
    sockaddr_storage to = {};
    socklen_t size = 0;
    if (address.starts_with("unix:")) {
      auto& unix_address = reinterpret_cast<sockaddr_un&>(to);
      unix_address.sun_family = AF_UNIX;
      std::strcpy(unix_address.sun_path, address.c_str() + std::strlen("unix:"));
      size = sizeof(unix_address);
    } else {
      auto& ip_address = reinterpret_cast<sockaddr_in&>(to);
      ip_address.sin_family = AF_INET;
      ip_address.sin_port =
          htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
      ip_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      size = sizeof(ip_address);
    }
    server_ = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // So small that a reply stays on the server's side.
    const int small = 4096;
    setsockopt(server_, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    EXPECT_EQ(connect(server_, reinterpret_cast<sockaddr*>(&to), size), 0);
    int ends[2] = {};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    client_ = ends[0];
    EXPECT_EQ(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    stub_ = v1::GradClip::NewStub(grpc::CreateInsecureChannelFromFd("relayed", ends[1]));
    up_ = std::thread([this] { Pass(client_, server_); });
    down_ = std::thread([this] {
      open_.WaitForNotification();
      Pass(server_, client_);
    });
  }

  ~Relay() {
    stub_ = nullptr;
    shutdown(client_, SHUT_RDWR);
    shutdown(server_, SHUT_RDWR);
    if (!open_.HasBeenNotified()) open_.Notify();
    up_.join();
    down_.join();
    close(client_);
    close(server_);
  }

  v1::GradClip::Stub& stub() { return *stub_; }
  void Open() { open_.Notify(); }

 private:
  static void Pass(int from, int to) {
    char bytes[4096];
    while (true) {
      const ssize_t size = recv(from, bytes, sizeof(bytes), 0);
      if (size <= 0) break;
      if (send(to, bytes, static_cast<size_t>(size), MSG_NOSIGNAL) != size) break;
    }
    shutdown(to, SHUT_WR);
  }

  int server_ = -1;
  int client_ = -1;
  absl::Notification open_;
  std::unique_ptr<v1::GradClip::Stub> stub_;
  std::thread up_;
  std::thread down_;
};

// By where the server listens.
class SlowReader : public ServerTest, public testing::WithParamInterface<std::string> {
 protected:
  // 48 KiB: less than a client's first window, so that all of it is sent before anything is read.
  static constexpr int64_t kElements = 12 << 10;

  SlowReader() {
    options_.listen = {GetParam() == "Unix" ? "unix:" + path_ : "127.0.0.1:0"};
    Serve();
    relay_ = std::make_unique<Relay>(server_->addresses()[0]);
    stream_ = relay_->stub().ClipGradNorm(&context_);
    EXPECT_TRUE(stream_->Write(ClipStart(1, kElements)));
    while (server_->reserved_bytes() == 0) std::this_thread::yield();
    EXPECT_TRUE(stream_->Write(Data(std::string(4 * kElements, '\1'))));
    stream_->WritesDone();
    // The memory of a reply is free when the kernel has it.
    AwaitNothingReserved();
  }

  ~SlowReader() override {
    server_.reset();
    unlink(path_.c_str());
  }

  const std::string path_ = absl::StrCat("/tmp/gradclip_drain_test.", getpid(), ".sock");
  std::unique_ptr<Relay> relay_;
  grpc::ClientContext context_;
  std::unique_ptr<Stream> stream_;
};

TEST_P(SlowReader, GetsItsWholeReplyBeforeTheServerHasDrained) {
  std::atomic<bool> drained = false;
  std::thread drain([&] {
    server_->Drain(absl::Hours(1));
    drained = true;
  });
  // Longer than the server waits for anything else.
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_FALSE(drained);
  relay_->Open();
  const Reply reply = Drain(*stream_);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient.size(), size_t{4} * kElements);
  drain.join();
}

TEST_P(SlowReader, ThatNeverReadsHoldsTheServerUntilTheDeadline) {
  const auto begin = std::chrono::steady_clock::now();
  server_->Drain(absl::Milliseconds(200));
  const auto took = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(took, std::chrono::milliseconds(200));
  EXPECT_LT(took, std::chrono::seconds(30));
  relay_->Open();
  Drain(*stream_);
}

INSTANTIATE_TEST_SUITE_P(Listening, SlowReader, testing::Values("Tcp", "Unix"),
                         [](const auto& listening) { return listening.param; });

class Draining : public ServerTest {};

TEST_F(Draining, RefusesNewCallsOnAllConnectionsAndEndsTheRunningOne) {
  Serve();
  grpc::ClientContext context;
  const auto running = stub_->ClipGradNorm(&context);
  ASSERT_TRUE(running->Write(ClipStart(1, 1)));
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  std::thread drain([&] { server_->Drain(absl::Hours(1)); });
  const auto get_server_info = [this] {
    grpc::ClientContext info_context;
    v1::GetServerInfoResponse info;
    return stub_->GetServerInfo(&info_context, {}, &info);
  };
  while (get_server_info().ok()) std::this_thread::yield();

  for (int connection = 0; connection < 2; ++connection) {
    if (connection == 1) stub_ = Connect();
    v1::ComputeNormRequest start;
    start.mutable_start()->add_tensors()->set_dtype(v1::DTYPE_FLOAT32);
    v1::NormResult norm;
    for (const grpc::Status& status :
         {get_server_info(), Clip({ClipStart(1, 1), Data("abcd")}).status,
          Compute({start}, norm)}) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
      EXPECT_THAT(status.error_message(), HasSubstr("the server is draining"));
    }
  }

  EXPECT_TRUE(running->Write(Data("abcd")));
  running->WritesDone();
  const Reply reply = Drain(*running);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient.size(), 4u);
  drain.join();
}

}  // namespace
}  // namespace gradclip
