// Connections that break without a word at every stage of a call, waits that are the server's own,
// and health.
#include <gmock/gmock.h>
#include <grpcpp/create_channel_posix.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>

#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

constexpr int64_t kElements = 4 << 20;  // 16 MiB, more than sockets and windows hold

class Connection : public ServerTest {
 protected:
  // A stub over a socket of the test's own, for Cut().
  std::unique_ptr<v1::GradClip::Stub> ConnectToCut() {
    const std::string& address = server_->addresses()[0];
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(connection, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    EXPECT_EQ(fcntl(connection, F_SETFL, O_NONBLOCK), 0);
    cut_ = dup(connection);
    return v1::GradClip::NewStub(grpc::CreateInsecureChannelFromFd("cut", connection));
  }

  // Both sides see the end of the stream; no frame says that the call is over.
  void Cut() {
    shutdown(cut_, SHUT_RDWR);
    close(cut_);
  }

  void Await(const std::function<bool()>& condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  int cut_ = -1;
};

TEST_F(Connection, CutAtAnyStageFreesEverything) {
  Serve();
  for (const int64_t sent : {int64_t{0}, int64_t{3}, 2 * kElements, 4 * kElements}) {
    const auto stub = ConnectToCut();
    grpc::ClientContext context;
    const auto stream = stub->ClipGradNorm(&context);
    ASSERT_TRUE(stream->Write(ClipStart(1, kElements)));
    if (sent > 0) {
      ASSERT_TRUE(stream->Write(Data(std::string(std::min<int64_t>(sent, 4 << 20), '\1'))));
    }
    for (int64_t more = 4 << 20; more < sent; more += 4 << 20) {
      ASSERT_TRUE(stream->Write(Data(std::string(4 << 20, '\1'))));
    }
    Await([&] { return server_->reserved_bytes() > 0; });
    Cut();
    Await([&] { return server_->reserved_bytes() == 0; });
    EXPECT_FALSE(Drain(*stream).status.ok());
  }
}

TEST_F(Connection, CutWhileTheReplyIsOnItsWayFreesEverything) {
  Serve();
  const auto stub = ConnectToCut();
  grpc::ClientContext context;
  const auto stream = stub->ClipGradNorm(&context);
  ASSERT_TRUE(stream->Write(ClipStart(1, kElements)));
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Write(Data(std::string(4 << 20, '\1'))));
  stream->WritesDone();
  v1::ClipGradNormResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_GT(server_->reserved_bytes(), 0u);
  Cut();
  Await([&] { return server_->reserved_bytes() == 0; });
}

TEST_F(Connection, CutWhileACallWaitsForMemoryTakesItOutOfTheQueue) {
  options_.memory_budget = options_.max_call_bytes = 18 << 20;
  Serve();
  grpc::ClientContext holding;
  const auto holder = stub_->ClipGradNorm(&holding);
  holder->Write(ClipStart(1, kElements));
  Await([&] { return server_->reserved_bytes() > 0; });
  const auto stub = ConnectToCut();
  grpc::ClientContext context;
  const auto stream = stub->ClipGradNorm(&context);
  stream->Write(ClipStart(1, kElements));
  Await([&] { return server_->waiting_calls() == 1; });
  Cut();
  Await([&] { return server_->waiting_calls() == 0; });
  holding.TryCancel();
  Drain(*holder);
  Await([&] { return server_->reserved_bytes() == 0; });
}

// While a call waits for memory its client cannot send: that is not the client's idleness.
TEST_F(Connection, IsNotIdleWhileItsCallWaitsForMemory) {
  options_.memory_budget = options_.max_call_bytes = 18 << 20;
  options_.idle_timeout = absl::Milliseconds(200);
  Serve();
  grpc::ClientContext holding;
  const auto holder = stub_->ClipGradNorm(&holding);
  holder->Write(ClipStart(1, kElements));
  Await([&] { return server_->reserved_bytes() > 0; });
  std::thread waiter([&] {
    const Reply reply = Clip({ClipStart(1, kElements), Data(std::string(4 << 20, '\1')),
                              Data(std::string(4 << 20, '\1')), Data(std::string(4 << 20, '\1')),
                              Data(std::string(4 << 20, '\1'))});
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  });
  Await([&] { return server_->waiting_calls() == 1; });
  // The holder stays busy for three idle timeouts.
  for (const absl::Time end = absl::Now() + 3 * options_.idle_timeout; absl::Now() < end;) {
    holder->Write(Data("abcd"));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  holding.TryCancel();
  Drain(*holder);
  waiter.join();
}

TEST_F(Connection, KeepsNoGradientWhereNoneHasToWait) {
  options_.memory_budget = options_.max_call_bytes = 1;  // so that a byte kept would be refused
  Serve();
  v1::ClipGradNormRequest coefficient = ClipStart(1, 1 << 20);
  coefficient.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  v1::ClipGradNormRequest given = ClipStart(1, 1 << 20);
  given.mutable_start()->set_total_norm(2);
  for (const auto& start : {coefficient, given}) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    ASSERT_TRUE(stream->Write(start));
    std::thread writer([&] {
      for (int i = 0; i < 4; ++i) stream->Write(Data(std::string(1 << 20, '\1')));
      EXPECT_EQ(server_->reserved_bytes(), 0u);
      stream->WritesDone();
    });
    const Reply reply = Drain(*stream);
    writer.join();
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  }
  const Reply refused = Clip({ClipStart(1, 1)});
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.status.error_message(),
            "the gradient has 4 bytes; the server keeps at most 1 for one call (--max-call-bytes). "
            "With reply REPLY_COEFFICIENT it keeps none: the caller multiplies by the coefficient");
}

class Health : public ServerTest {
 protected:
  // The status byte of HealthCheckResponse, or the call's error code, negative.
  int Check(const std::string& service) {
    grpc::GenericStub generic(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const std::string request =
        service.empty() ? "" : "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
    const grpc::Slice slice(request);
    const auto call = generic.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                               grpc::ByteBuffer(&slice, 1), &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, &context);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok) && ok);
    if (!status.ok()) return -status.error_code();
    grpc::Slice bytes;
    EXPECT_TRUE(response.DumpToSingleSlice(&bytes).ok());
    return bytes.size() == 2 ? bytes.begin()[1] : 0;
  }
};

TEST_F(Health, IsToldOfTheServiceAndTheWholeServer) {
  Serve();
  EXPECT_EQ(Check(""), 1);
  EXPECT_EQ(Check("gradclip.v1.GradClip"), 1);
  EXPECT_EQ(Check("gradclip.v1.Nothing"), -grpc::StatusCode::NOT_FOUND);
}

TEST_F(Health, TurnsNotServingForWatchersWhenTheServerDrains) {
  Serve();
  for (const std::string service : {"", "gradclip.v1.GradClip"}) {
    Serve();
    grpc::GenericStub generic(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto done = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    const auto call = generic.PrepareCall(&context, "/grpc.health.v1.Health/Watch", &queue);
    call->StartCall(&context);
    ASSERT_TRUE(done());
    const grpc::Slice request(
        service.empty() ? ""
                        : "\x0a" + std::string(1, static_cast<char>(service.size())) + service);
    call->WriteLast(grpc::ByteBuffer(&request, 1), {}, &context);
    ASSERT_TRUE(done());
    const auto next = [&] {
      grpc::ByteBuffer response;
      call->Read(&response, &context);
      grpc::Slice bytes;
      if (!done() || !response.DumpToSingleSlice(&bytes).ok() || bytes.size() != 2) return 0;
      return static_cast<int>(bytes.begin()[1]);
    };
    EXPECT_EQ(next(), 1);  // SERVING
    // A watch has no end of its own, and yet does not hold up the drain.
    std::thread drain([&] { server_->Drain(absl::Hours(1)); });
    EXPECT_EQ(next(), 2);  // NOT_SERVING
    drain.join();
    EXPECT_EQ(next(), 0);
    grpc::Status status;
    call->Finish(&status, &context);
    EXPECT_TRUE(done());
    EXPECT_FALSE(status.ok());
  }
}

}  // namespace
}  // namespace gradclip
