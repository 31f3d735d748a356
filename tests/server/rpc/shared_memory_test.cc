// Shared memory through a real server: registered over its memory socket, used in calls.
#include <gmock/gmock.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "tests/server/rpc/memory_socket_server.h"
#include "tests/server/shm/memfds.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

class SharedMemoryTest : public MemorySocketServer {
 protected:
  SharedMemoryTest() { options_.compute_threads = 3; }

  // `count` F32 elements from -1 to 1.
  static std::string Gradient(size_t count) {
    std::vector<float> elements(count);
    for (size_t i = 0; i < count; ++i) {
      elements[i] = std::sin(static_cast<float>(i));
    }
    return Bytes(elements);
  }
};

TEST_F(SharedMemoryTest, ClipsInPlace) {
  Serve();
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.memory_socket(), socket());
  Shared memory(info.memory_socket(), 64);
  memory.Write(16, Bytes<float>({3, 4}));
  const Reply reply = Clip({ClipStart(1, 2), memory.Ranges(16, 8)});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 5);
  EXPECT_FALSE(reply.result.gradient_follows());
  EXPECT_EQ(reply.gradient, "");
  const float c = static_cast<float>(reply.result.coefficient());
  EXPECT_EQ(memory.Read(16, 8), Bytes<float>({3 * c, 4 * c}));
}

TEST_F(SharedMemoryTest, MeasuresWhatMayOnlyBeRead) {
  Serve();
  Shared memory(socket(), 64, Registration::kReadOnly);
  memory.Write(0, Bytes<float>({3, 4}));
  v1::ComputeNormRequest start;
  *start.mutable_start()->add_tensors() = ClipStart(1, 2).start().tensors(0);
  v1::NormResult norm;
  ASSERT_TRUE(Compute({start, memory.Ranges<v1::ComputeNormRequest>(0, 8)}, norm).ok());
  EXPECT_EQ(norm.total_norm(), 5);
  const Reply reply = Clip({ClipStart(1, 2), memory.Ranges(0, 8)});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("read only"));
}

TEST_F(SharedMemoryTest, GivesTheBitsOfDataForLargeGradientsAloneAndMixed) {
  constexpr size_t kElements = 3'000'017;
  Serve();
  const std::string bytes = Gradient(kElements);
  std::vector<v1::ClipGradNormRequest> requests = {ClipStart(1, kElements)};
  for (size_t at = 0; at < bytes.size(); at += 1 << 20) {
    requests.push_back(Data(bytes.substr(at, 1 << 20)));
  }
  const Reply expected = Clip(requests);
  ASSERT_TRUE(expected.status.ok());

  Shared memory(socket(), bytes.size());
  memory.Write(0, bytes);
  const Reply alone = Clip({requests[0], memory.Ranges(0, bytes.size())});
  ASSERT_TRUE(alone.status.ok()) << alone.status.error_message();
  EXPECT_EQ(alone.result.norm().total_norm(), expected.result.norm().total_norm());
  EXPECT_TRUE(memory.Read(0, bytes.size()) == expected.gradient);

  // Shared up to an element amid a block, then data, then shared again.
  memory.Write(0, bytes);
  const uint64_t first = 4 * 1'000'003;
  const uint64_t second = first + (1 << 20);
  const Reply mixed =
      Clip({requests[0], memory.Ranges(0, first), Data(bytes.substr(first, second - first)),
            memory.Ranges(second, bytes.size() - second)});
  ASSERT_TRUE(mixed.status.ok()) << mixed.status.error_message();
  EXPECT_EQ(mixed.result.norm().total_norm(), expected.result.norm().total_norm());
  EXPECT_TRUE(mixed.gradient == expected.gradient.substr(first, second - first));
  EXPECT_TRUE(memory.Read(0, first) == expected.gradient.substr(0, first));
  EXPECT_TRUE(memory.Read(first, second - first) == bytes.substr(first, second - first));
  EXPECT_TRUE(memory.Read(second, bytes.size() - second) == expected.gradient.substr(second));
}

TEST_F(SharedMemoryTest, ScalesByAGivenNormAndSendsOnlyDataBack) {
  Serve();
  Shared memory(socket(), 64);
  memory.Write(0, Bytes<float>({3, 4}));
  v1::ClipGradNormRequest start = ClipStart(1, 4);
  start.mutable_start()->set_total_norm(2);
  start.mutable_start()->set_epsilon(0);
  const Reply reply = Clip({start, Data(Bytes<float>({1, 2})), memory.Ranges(0, 8)});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient, Bytes<float>({0.5, 1}));
  EXPECT_EQ(memory.Read(0, 8), Bytes<float>({1.5, 2}));
}

TEST_F(SharedMemoryTest, ChargesACallOnlyForWhatItSendsAsData) {
  options_.max_call_bytes = 1 << 20;
  Serve();
  const std::string bytes = Gradient(1 << 20);
  Shared memory(socket(), bytes.size());
  memory.Write(0, bytes);
  const uint64_t shared = bytes.size() - (1 << 20);
  EXPECT_TRUE(Clip({ClipStart(1, 1 << 20), memory.Ranges(0, shared), Data(bytes.substr(shared))})
                  .status.ok());
  const Reply reply =
      Clip({ClipStart(1, 1 << 20), Data(bytes.substr(0, 4)), memory.Ranges(4, bytes.size() - 4)});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("the gradient has 4194304 bytes"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("--max-call-bytes"));
}

TEST_F(SharedMemoryTest, LetsDataWaitForTheBudgetThatRegionsAndCallsHold) {
  options_.memory_budget = 64 << 20;
  options_.max_call_bytes = options_.max_shared_bytes = options_.max_shared_bytes_per_peer =
      options_.memory_budget;
  Serve();
  auto holder = std::make_unique<Shared>(socket(), 60 << 20);
  EXPECT_EQ(server_->reserved_bytes(), uint64_t{60} << 20);
  const std::string bytes = Gradient(2 << 20);
  Reply reply;
  std::thread caller([&] {
    std::vector<v1::ClipGradNormRequest> requests = {ClipStart(1, 2 << 20)};
    for (size_t at = 0; at < bytes.size(); at += 1 << 20) {
      requests.push_back(Data(bytes.substr(at, 1 << 20)));
    }
    reply = Clip(requests);
  });
  EXPECT_TRUE(Await([&] { return server_->waiting_calls() == 1; }));
  holder.reset();
  caller.join();
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient.size(), bytes.size());
  AwaitNothingReserved();
}

TEST_F(SharedMemoryTest, KnowsARegionOnlyAsLongAsItsConnection) {
  Serve();
  Shared memory(socket(), 64);
  memory.Write(0, Bytes<float>({3, 4}));
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  v1::ClipGradNormRequest start = ClipStart(1, 4);
  start.mutable_start()->set_total_norm(2);
  start.mutable_start()->set_epsilon(0);
  stream->Write(start);
  stream->Write(memory.Ranges(0, 8));
  // With a given norm they are scaled as they come.
  EXPECT_TRUE(Await([&] { return memory.Read(0, 8) == Bytes<float>({1.5, 2}); }));
  // Another caller may use the token: who has it may use the memory.
  const auto other = Connect();
  EXPECT_TRUE(Clip({ClipStart(1, 2), memory.Ranges(16, 8)}).status.ok());
  memory.Close();
  Reply reply;
  EXPECT_TRUE(Await([&] {
    reply = Clip({ClipStart(1, 2), memory.Ranges(16, 8)});
    return !reply.status.ok();
  }));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("Register the memory again"));
  // The call that has it already goes on with it.
  EXPECT_GT(server_->reserved_bytes(), 0u);
  stream->Write(Data(Bytes<float>({1, 1})));
  stream->WritesDone();
  reply = Drain(*stream);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.gradient, Bytes<float>({0.5, 0.5}));
  AwaitNothingReserved();
}

TEST_F(SharedMemoryTest, FreesEverythingWhereCallsAreCancelledAmidTheirWork) {
  Serve();
  const std::string bytes = Gradient(4 << 20);
  auto memory = std::make_unique<Shared>(socket(), bytes.size());
  memory->Write(0, bytes);
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    stream->Write(ClipStart(1, 4 << 20));
    stream->Write(memory->Ranges(0, bytes.size()));
    if (i % 2 == 0) stream->WritesDone();
    std::this_thread::sleep_for(std::chrono::microseconds(200 * i));
    context.TryCancel();
    Drain(*stream);
  }
  memory.reset();
  AwaitNothingReserved();
}

TEST_F(SharedMemoryTest, LivesThroughPeersThatWriteAndPunchHolesMeanwhile) {
  Serve();
  constexpr uint64_t kBytes = uint64_t{16} << 20;
  Shared memory(socket(), kBytes);
  std::atomic<bool> stop = false;
  std::thread peer([&] {
    const std::string page(PageBytes(), '\x3f');
    for (uint64_t i = 0; !stop; ++i) {
      const uint64_t at = i * 37 % (kBytes / PageBytes()) * PageBytes();
      // (pwrite(), as a race of plain stores is one that sanitizers would report.)
      if (i % 2 == 0) {
        PunchHole(memory.memfd(), at, PageBytes());
      } else {
        EXPECT_EQ(pwrite(memory.memfd().get(), page.data(), page.size(), static_cast<off_t>(at)),
                  static_cast<ssize_t>(page.size()));
      }
    }
  });
  for (int i = 0; i < 20; ++i) {
    const Reply reply = Clip({ClipStart(1, kBytes / 4), memory.Ranges(0, kBytes)});
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_TRUE(std::isfinite(reply.result.norm().total_norm()));
  }
  stop = true;
  peer.join();
}

TEST_F(SharedMemoryTest, ServesManyCallersAtOnce) {
  Serve();
  const std::string bytes = Gradient(1 << 20);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      Shared memory(socket(), bytes.size());
      memory.Write(0, bytes);
      v1::ClipGradNormRequest start = ClipStart(1, 1 << 20);
      start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
      double norm = 0;
      for (int call = 0; call < 10; ++call) {
        const Reply reply = Clip({start, memory.Ranges(0, bytes.size())});
        ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
        if (call == 0) norm = reply.result.norm().total_norm();
        EXPECT_EQ(reply.result.norm().total_norm(), norm);
      }
      EXPECT_TRUE(memory.Read(0, bytes.size()) == bytes);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST_F(SharedMemoryTest, RefusesMoreRangesThanItsLimitBeforeItParsesThem) {
  options_.max_ranges = 10;
  Serve();
  Shared memory(socket(), 64);
  v1::ClipGradNormRequest many = memory.Ranges(0, 4);
  for (int i = 0; i < 100; ++i) {
    many.mutable_shared()->add_offset(0);
    many.mutable_shared()->add_length(0);
  }
  const Reply reply = Clip({ClipStart(1, 1), many});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("more than 10 ranges"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("--max-ranges"));
}

TEST_F(SharedMemoryTest, NeedsAMemorySocket) {
  Serve();
  Shared memory(socket(), 64);
  const v1::ClipGradNormRequest ranges = memory.Ranges(0, 8);
  options_.memory_socket.clear();
  Serve();
  const Reply reply = Clip({ClipStart(1, 2), ranges});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("--memory-socket"));
}
}  // namespace
}  // namespace gradclip
