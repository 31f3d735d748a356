// How calls wait, vanish and are drained.
#include <gmock/gmock.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

constexpr int64_t kElements = 1 << 20;  // 4 MiB

class CallLife : public ServerTest {
 protected:
  // A call that has been admitted and has sent `bytes` of 4 MiB.
  struct OpenCall {
    std::unique_ptr<grpc::ClientContext> context = std::make_unique<grpc::ClientContext>();
    std::unique_ptr<Stream> stream;
  };

  OpenCall Open(size_t bytes = 0) {
    const uint64_t before = server_->reserved_bytes();
    OpenCall call;
    call.stream = stub_->ClipGradNorm(call.context.get());
    call.stream->Write(ClipStart(1, kElements));
    if (bytes > 0) call.stream->Write(Data(std::string(bytes, '\1')));
    while (server_->reserved_bytes() == before) std::this_thread::yield();
    return call;
  }
};

TEST_F(CallLife, FreesEverythingWhenACallIsCancelledAtAnyStage) {
  Serve();
  for (size_t bytes : {0, 5, 1 << 20, 4 << 20}) {
    OpenCall call = Open(bytes);
    call.context->TryCancel();
    EXPECT_EQ(Drain(*call.stream).status.error_code(), grpc::StatusCode::CANCELLED);
    AwaitNothingReserved();
  }
  // While the reply is on its way.
  OpenCall call = Open(4 << 20);
  call.stream->WritesDone();
  v1::ClipGradNormResponse response;
  ASSERT_TRUE(call.stream->Read(&response));
  call.context->TryCancel();
  EXPECT_EQ(Drain(*call.stream).status.error_code(), grpc::StatusCode::CANCELLED);
  AwaitNothingReserved();
}

TEST_F(CallLife, WaitsForMemoryFirstComeFirstServed) {
  options_.memory_budget = options_.max_call_bytes = 6 << 20;
  Serve();
  OpenCall holder = Open();
  const std::string bytes(4 * kElements, '\1');
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.emplace_back([&] {
      const Reply reply = Clip({ClipStart(1, kElements), Data(bytes)});
      EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
      EXPECT_EQ(reply.gradient.size(), bytes.size());
    });
  }
  while (server_->waiting_calls() < 3) std::this_thread::yield();
  // What keeps nothing needs not wait.
  v1::ClipGradNormRequest start = ClipStart(1, 1);
  start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  EXPECT_TRUE(Clip({start, Data("abcd")}).status.ok());
  EXPECT_EQ(server_->waiting_calls(), 3u);
  holder.context->TryCancel();
  Drain(*holder.stream);
  for (std::thread& waiter : waiters) waiter.join();
  AwaitNothingReserved();
}

TEST_F(CallLife, GivesUpWaitingForMemoryAfterTheAdmissionTimeout) {
  options_.memory_budget = options_.max_call_bytes = 6 << 20;
  options_.admission_timeout = absl::Milliseconds(100);
  Serve();
  OpenCall holder = Open();
  const Reply reply = Clip({ClipStart(1, kElements)});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(),
              HasSubstr("waited 100ms (--admission-timeout) for 4194304 bytes"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("(--memory-budget)"));
  EXPECT_EQ(server_->waiting_calls(), 0u);
  holder.context->TryCancel();
  Drain(*holder.stream);
}

TEST_F(CallLife, LeavesTheQueueWhenCancelled) {
  options_.memory_budget = options_.max_call_bytes = 6 << 20;
  Serve();
  OpenCall holder = Open();
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, kElements));
  while (server_->waiting_calls() == 0) std::this_thread::yield();
  context.TryCancel();
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
  while (server_->waiting_calls() > 0) std::this_thread::yield();
  holder.context->TryCancel();
  Drain(*holder.stream);
  AwaitNothingReserved();
}

TEST_F(CallLife, RespectsTheCallersDeadlineWhileItWaits) {
  options_.memory_budget = options_.max_call_bytes = 6 << 20;
  Serve();
  OpenCall holder = Open();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, kElements));
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  while (server_->waiting_calls() > 0) std::this_thread::yield();
  holder.context->TryCancel();
  Drain(*holder.stream);
}

TEST_F(CallLife, LetsRunningCallsEndWhileItDrains) {
  Serve();
  OpenCall call = Open(1 << 20);
  std::thread drain([&] { server_->Drain(absl::Seconds(60)); });
  // A refused call shows that draining has begun.
  while (true) {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    if (!stub_->GetServerInfo(&context, {}, &info).ok()) break;
  }
  ASSERT_TRUE(call.stream->Write(Data(std::string(3 << 20, '\1'))));
  call.stream->WritesDone();
  const Reply reply = Drain(*call.stream);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient.size(), size_t{4} << 20);
  drain.join();
}

TEST_F(CallLife, CancelsWhatStillRunsWhenTheDrainTimeoutHasPassed) {
  Serve();
  OpenCall call = Open(1 << 20);
  server_->Drain(absl::Milliseconds(50));
  EXPECT_FALSE(Drain(*call.stream).status.ok());
  AwaitNothingReserved();
}

}  // namespace
}  // namespace gradclip
