// Connections that break without a word at every stage of a call, and waits that are the server's
// own.
#include <gmock/gmock.h>
#include <grpcpp/create_channel_posix.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/net/dial.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

constexpr int64_t kElements = 4 << 20;  // 16 MiB, more than sockets and windows hold

class Connection : public ServerTest {
 protected:
  // A stub over a socket of the test's own, for Cut().
  std::unique_ptr<v1::GradClip::Stub> ConnectToCut() {
    const int connection = Dial(server_->addresses()[0]).Release();
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
  options_.idle_timeout = absl::Seconds(1);
  Serve();
  std::vector<v1::ClipGradNormRequest> requests(4, Data(std::string(4 << 20, '\1')));
  requests.insert(requests.begin(), ClipStart(1, kElements));
  grpc::ClientContext holding;
  const auto holder = stub_->ClipGradNorm(&holding);
  holder->Write(ClipStart(1, kElements));
  Await([&] { return server_->reserved_bytes() > 0; });
  std::thread waiter([&] {
    const Reply reply = Clip(requests);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  });
  const auto stay_busy = [&] {
    ASSERT_TRUE(holder->Write(Data("abcd")));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  while (server_->waiting_calls() != 1 && !HasFatalFailure()) stay_busy();
  const absl::Time end = absl::Now() + 3 * options_.idle_timeout;
  while (absl::Now() < end && !HasFatalFailure()) stay_busy();
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

}  // namespace
}  // namespace gradclip
