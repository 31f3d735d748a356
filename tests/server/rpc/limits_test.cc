// Every limit of what a caller may use at once, run into.
#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/client/files/file_bytes.h"
#include "tests/server/net/dial.h"
#include "tests/server/rpc/generic_call.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kElements = 1000;

class LimitsTest : public ServerTest {
 protected:
  // A call of ClipGradNorm that has sent its start message and goes on until it is told to end.
  struct OpenCall {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<Stream> stream;
  };
  OpenCall Open(v1::GradClip::Stub& stub, int64_t elements = kElements) {
    OpenCall call{std::make_unique<grpc::ClientContext>(), nullptr};
    call.stream = stub.ClipGradNorm(call.context.get());
    EXPECT_TRUE(call.stream->Write(ClipStart(1, elements)));
    return call;
  }
  OpenCall Open(int64_t elements = kElements) { return Open(*stub_, elements); }

  // Sends what is missing, and takes the answer.
  static Reply End(OpenCall& call, int64_t elements = kElements) {
    EXPECT_TRUE(call.stream->Write(Data(std::string(4 * static_cast<size_t>(elements), '\0'))));
    call.stream->WritesDone();
    return Drain(*call.stream);
  }

  // How a whole small call ends.
  grpc::Status Status() { return Clip({ClipStart(1, 1), Data(Bytes<float>({1}))}).status; }

  void ExpectRefused(const grpc::Status& status, grpc::StatusCode code, const std::string& limit) {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("(--" + limit));
    // The metric counts when the server is done with the call.
    while (server_->limit_hits().of(limit) == 0) std::this_thread::yield();
  }

  // The client does what the server asks of it before it closes, and notices.
  void AwaitNoConnection() {
    while (server_->connections() > 0 || channel_->GetState(false) == GRPC_CHANNEL_READY) {
      channel_->WaitForStateChange(GRPC_CHANNEL_READY,
                                   std::chrono::system_clock::now() + std::chrono::milliseconds(5));
    }
  }

  void AwaitCalls(uint64_t calls) {
    while (server_->calls() != calls) std::this_thread::yield();
  }
};

TEST_F(LimitsTest, CallsInProgress) {
  options_.max_calls = 2;
  options_.max_calls_per_caller = 2;
  Serve();
  OpenCall first = Open();
  OpenCall second = Open();
  AwaitCalls(2);
  ExpectRefused(Status(), grpc::StatusCode::UNAVAILABLE, "max-calls");
  EXPECT_TRUE(End(first).status.ok());
  AwaitCalls(1);
  EXPECT_TRUE(Status().ok());
  EXPECT_TRUE(End(second).status.ok());
}

TEST_F(LimitsTest, CallsInProgressOfOneCaller) {
  options_.max_calls_per_caller = 1;
  Serve();
  OpenCall open = Open();
  AwaitCalls(1);
  ExpectRefused(Status(), grpc::StatusCode::RESOURCE_EXHAUSTED, "max-calls-per-caller");
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ExpectRefused(stub_->GetServerInfo(&context, {}, &info), grpc::StatusCode::RESOURCE_EXHAUSTED,
                "max-calls-per-caller");
  EXPECT_TRUE(End(open).status.ok());
}

TEST_F(LimitsTest, CallsThatWait) {
  options_.memory_budget = options_.max_call_bytes = 4 * kElements;
  options_.max_waiting_calls = 1;
  Serve();
  OpenCall holding = Open();
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  OpenCall waiting = Open();
  while (server_->waiting_calls() == 0) std::this_thread::yield();
  ExpectRefused(Status(), grpc::StatusCode::RESOURCE_EXHAUSTED, "max-waiting-calls");
  EXPECT_TRUE(End(holding).status.ok());
  EXPECT_TRUE(End(waiting).status.ok());
}

TEST_F(LimitsTest, CallsOfOneCallerThatWait) {
  options_.memory_budget = options_.max_call_bytes = 4 * kElements;
  options_.max_waiting_calls_per_caller = 1;
  Serve();
  OpenCall holding = Open();
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  OpenCall waiting = Open();
  while (server_->waiting_calls() == 0) std::this_thread::yield();
  ExpectRefused(Status(), grpc::StatusCode::RESOURCE_EXHAUSTED, "max-waiting-calls-per-caller");
  EXPECT_TRUE(End(holding).status.ok());
  EXPECT_TRUE(End(waiting).status.ok());
}

TEST_F(LimitsTest, BytesOfOneCaller) {
  options_.max_bytes_per_caller = 4 * kElements;
  Serve();
  ExpectRefused(Clip({ClipStart(1, kElements + 1)}).status, grpc::StatusCode::RESOURCE_EXHAUSTED,
                "max-bytes-per-caller");
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.max_call_bytes(), 4U * kElements);
}

// One host is one caller, and so is one user of a unix socket.
TEST_F(LimitsTest, OfOneCallerLeaveOthersAlone) {
  const Folder folder;
  options_.listen.push_back("unix:" + std::string(folder / "socket"));
  options_.memory_budget = options_.max_call_bytes = 8 * kElements;
  options_.max_bytes_per_caller = 4 * kElements;
  options_.max_calls_per_caller = 2;
  Serve();
  OpenCall holding = Open();
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  OpenCall waiting = Open();
  while (server_->waiting_calls() == 0) std::this_thread::yield();
  ExpectRefused(Status(), grpc::StatusCode::RESOURCE_EXHAUSTED, "max-calls-per-caller");

  const auto other = Connect(1);
  OpenCall others = Open(*other);
  EXPECT_TRUE(End(others).status.ok());
  EXPECT_TRUE(End(holding).status.ok());
  EXPECT_TRUE(End(waiting).status.ok());
}

TEST_F(LimitsTest, Connections) {
  options_.max_connections = 1;
  options_.max_connections_per_peer = 1;
  Serve();
  ASSERT_TRUE(Status().ok());
  EXPECT_EQ(server_->connections(), 1U);
  EXPECT_TRUE(IsClosedByPeer(Dial(server_->addresses()[0])));
  EXPECT_EQ(server_->limit_hits().of("max-connections"), 1U);
  EXPECT_TRUE(Status().ok());
}

TEST_F(LimitsTest, StreamsOfOneConnection) {
  options_.max_streams_per_connection = 1;
  Serve();
  OpenCall open = Open();
  AwaitCalls(1);
  ExpectRefused(Status(), grpc::StatusCode::RESOURCE_EXHAUSTED, "max-streams-per-connection");
  // Other connections are left alone.
  const auto other = Connect();
  OpenCall others = Open(*other);
  EXPECT_TRUE(End(others).status.ok());
  EXPECT_TRUE(End(open).status.ok());
  AwaitCalls(0);
  EXPECT_TRUE(Status().ok());
}

TEST_F(LimitsTest, Metadata) {
  options_.max_metadata_bytes = 2048;
  Serve();
  const auto call = [&](size_t bytes) {
    grpc::ClientContext context;
    context.AddMetadata("x-much", std::string(bytes, 'x'));
    v1::GetServerInfoResponse info;
    return stub_->GetServerInfo(&context, {}, &info).error_code();
  };
  EXPECT_EQ(call(1024), grpc::StatusCode::OK);
  EXPECT_EQ(call(2048), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(LimitsTest, TimeToShakeHands) {
  options_.handshake_timeout = absl::Milliseconds(50);
  Serve();
  EXPECT_TRUE(IsClosedByPeer(Dial(server_->addresses()[0])));
}

TEST_F(LimitsTest, TimeThatAConnectionMayIdle) {
  options_.connection_idle_timeout = absl::Milliseconds(50);
  Serve();
  ASSERT_TRUE(Status().ok());
  AwaitNoConnection();
  EXPECT_TRUE(Status().ok());  // over a new one
}

TEST_F(LimitsTest, AgeOfAConnection) {
  options_.max_connection_age = absl::Milliseconds(50);
  Serve();
  OpenCall open = Open();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_TRUE(End(open).status.ok());  // calls in progress may end
  AwaitNoConnection();
  EXPECT_TRUE(Status().ok());
}

// A peer whose machine has gone does not close its connection.
TEST_F(LimitsTest, SilenceOfAPeer) {
  options_.keepalive_time = absl::Milliseconds(50);
  options_.keepalive_timeout = absl::Seconds(1);
  Serve();
  const FileDescriptor peer = Dial(server_->addresses()[0]);
  // Preface, an empty SETTINGS frame, and the HEADERS of a call.
  const std::string path = "/gradclip.v1.GradClip/ClipGradNorm";
  const auto literal = [](const std::string& name, const std::string& value) {
    return std::string(1, '\0') + static_cast<char>(name.size()) + name +
           static_cast<char>(value.size()) + value;
  };
  const std::string headers = literal(":method", "POST") + literal(":scheme", "http") +
                              literal(":path", path) + literal(":authority", "a") +
                              literal("te", "trailers") +
                              literal("content-type", "application/grpc");
  const std::string frames = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
                             std::string("\0\0\0\4\0\0\0\0\0", 9) + std::string("\0\0", 2) +
                             static_cast<char>(headers.size()) + std::string("\1\4\0\0\0\1", 6) +
                             headers;
  ASSERT_EQ(send(peer.get(), frames.data(), frames.size(), 0), static_cast<ssize_t>(frames.size()));
  AwaitCalls(1);
  AwaitCalls(0);
  while (server_->connections() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// Methods that are not here count, too.
TEST_F(LimitsTest, CallsOfUnknownMethodsOnOneConnection) {
  options_.max_resets = 10;
  Serve();
  for (int i = 0; i < 30; ++i) {
    GenericCall call(channel_, "/no/such.Method");
    const grpc::Status status = call.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
    EXPECT_THAT(status.error_message(), HasSubstr("/no/such.Method"));
  }
  EXPECT_EQ(server_->limit_hits().of("max-resets"), 0U);  // they were not cancelled
  EXPECT_TRUE(Status().ok());
}

// A caller's start messages leave room for those of others.
TEST_F(LimitsTest, DeclarationsOfOneCaller) {
  const Folder folder;
  options_.listen.push_back("unix:" + std::string(folder / "socket"));
  options_.memory_budget = options_.max_call_bytes = uint64_t{1} << 20;
  Serve();
  v1::ClipGradNormRequest large = ClipStart(1, 0);
  large.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  for (int i = 1; i < 131072; ++i) {
    *large.mutable_start()->add_tensors() = large.start().tensors(0);
  }
  const auto open = [&](v1::GradClip::Stub& stub) {
    OpenCall call{std::make_unique<grpc::ClientContext>(), nullptr};
    call.stream = stub.ClipGradNorm(call.context.get());
    EXPECT_TRUE(call.stream->Write(large));
    return call;
  };
  OpenCall first = open(*stub_);
  while (server_->declarations_bytes() == 0) std::this_thread::yield();
  // There is no room for two of one caller.
  const Reply second = Clip({large});
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(second.status.error_message(), HasSubstr("for one"));

  const auto other = Connect(1);
  OpenCall third = open(*other);
  third.stream->WritesDone();
  EXPECT_TRUE(Drain(*third.stream).status.ok());
  first.stream->WritesDone();
  EXPECT_TRUE(Drain(*first.stream).status.ok());
}

TEST_F(LimitsTest, CallsDroppedAsFastAsTheyAreMade) {
  options_.max_resets = 10;
  Serve();
  ASSERT_TRUE(Status().ok());
  const auto other = Connect();
  {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    ASSERT_TRUE(other->GetServerInfo(&context, {}, &info).ok());
  }
  ASSERT_EQ(server_->connections(), 2U);
  while (server_->limit_hits().of("max-resets") == 0) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the call goes out
    context.TryCancel();
    static_cast<void>(stream->Finish());
  }
  stub_.reset();  // which may have connected again
  // The other's connection is left alone.
  while (server_->connections() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(server_->connections(), 1U);
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(other->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(server_->connections(), 1U);
}

}  // namespace
}  // namespace gradclip
