#include "server/rpc/server.h"

#include <gmock/gmock.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

TEST_F(ServerTest, ClipsTheWorkedExample) {
  Serve();
  v1::ClipGradNormRequest start = ClipStart(5, 2);
  *start.mutable_start()->add_tensors() = start.start().tensors(0);
  const Reply reply = Clip({start, Data(Bytes<float>({3, 4})), Data(Bytes<float>({1, 2}))});
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_NEAR(reply.result.norm().total_norm(), 5.4772, 5e-5);
  EXPECT_TRUE(reply.result.gradient_follows());
  const float c = static_cast<float>(reply.result.coefficient());
  EXPECT_EQ(reply.gradient, Bytes<float>({3 * c, 4 * c, 1 * c, 2 * c}));
}

TEST_F(ServerTest, ComputesTheNorm) {
  Serve();
  v1::ComputeNormRequest start;
  *start.mutable_start()->mutable_tensors() = ClipStart(0, 2).start().tensors();
  v1::ComputeNormRequest data;
  data.set_data(Bytes<float>({3, 4}));
  v1::NormResult norm;
  ASSERT_TRUE(Compute({start, data}, norm).ok());
  EXPECT_EQ(norm.total_norm(), 5);
  EXPECT_THAT(norm.backend(), HasSubstr("cpu/"));
}

TEST_F(ServerTest, CutsLongRepliesIntoMessagesOfAMebibyte) {
  Serve();
  const std::vector<float> gradient(3'000'001, 1.0f);
  const std::string bytes = Bytes(gradient);
  std::vector<v1::ClipGradNormRequest> requests = {ClipStart(1, gradient.size())};
  for (size_t at = 0; at < bytes.size(); at += 4 << 20) {
    requests.push_back(Data(bytes.substr(at, 4 << 20)));
  }
  const Reply reply = Clip(requests);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_LE(reply.largest_message, size_t{1} << 20);
  const float c = static_cast<float>(reply.result.coefficient());
  EXPECT_EQ(reply.gradient, Bytes(std::vector<float>(gradient.size(), c)));
}

TEST_F(ServerTest, SendsClippedBytesWhileLaterOnesArriveWhereTheNormIsGiven) {
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 4);
  start.mutable_start()->set_total_norm(2);
  start.mutable_start()->set_epsilon(0);
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  ASSERT_TRUE(stream->Write(start));
  v1::ClipGradNormResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.result().coefficient(), 0.5);
  // Ten bytes are two elements and a half: two come back at once.
  const std::string bytes = Bytes<float>({2, 4, 6, 8});
  ASSERT_TRUE(stream->Write(Data(bytes.substr(0, 10))));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.data(), Bytes<float>({1, 2}));
  ASSERT_TRUE(stream->Write(Data(bytes.substr(10))));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.data(), Bytes<float>({3, 4}));
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(ServerTest, ScalesByAGivenNormWhateverTheMessages) {
  Serve();
  // F64 behind three F16, so that elements lie across messages and slices, and more than comes back
  // in one message.
  constexpr int64_t kDoubles = 1'000'003;
  v1::ClipGradNormRequest start = ClipStart(1, 3);
  start.mutable_start()->mutable_tensors(0)->set_dtype(v1::DTYPE_FLOAT16);
  *start.mutable_start()->add_tensors() = ClipStart(1, kDoubles).start().tensors(0);
  start.mutable_start()->mutable_tensors(1)->set_dtype(v1::DTYPE_FLOAT64);
  start.mutable_start()->set_total_norm(2);
  start.mutable_start()->set_epsilon(0);
  std::string bytes = Bytes<uint16_t>({0x3c00, 0xc000, 0x0002});  // 1, -2, the second subnormal
  std::string clipped = Bytes<uint16_t>({0x3800, 0xbc00, 0x0001});
  std::vector<double> doubles(kDoubles);
  for (int64_t i = 0; i < kDoubles; ++i) doubles[i] = static_cast<double>(i);
  bytes += Bytes(doubles);
  for (double& x : doubles) x /= 2;
  clipped += Bytes(doubles);
  for (const size_t message : {size_t{65'537}, size_t{1} << 20, size_t{3'999'999}}) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    std::thread writer([&] {
      stream->Write(start);
      for (size_t at = 0; at < bytes.size(); at += message) {
        stream->Write(Data(bytes.substr(at, message)));
      }
      stream->WritesDone();
    });
    const Reply reply = Drain(*stream);
    writer.join();
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_LE(reply.largest_message, size_t{1} << 20);
    EXPECT_TRUE(reply.gradient == clipped) << message;
  }
}

TEST_F(ServerTest, EndsAtOnceWhereACallerLeavesAmidClippedBytes) {
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 64 << 20);
  start.mutable_start()->set_total_norm(2);
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(start);
  stream->Write(Data(std::string(1 << 20, '\0')));
  v1::ClipGradNormResponse response;
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(stream->Read(&response));
  context.TryCancel();
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
  server_->Drain(absl::Hours(1));  // waits for calls that run
}

TEST_F(ServerTest, TellsACallerThatWritesAllBeforeItReads) {
  options_.idle_timeout = absl::Seconds(1);
  Serve();
  const int64_t elements = 64 << 20;  // 256 MiB: more than all buffers on the way
  v1::ClipGradNormRequest start = ClipStart(1, elements);
  start.mutable_start()->set_total_norm(2);
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(start);
  const v1::ClipGradNormRequest data = Data(std::string(1 << 20, '\0'));
  for (int64_t sent = 0; sent < elements * 4 && stream->Write(data); sent += 1 << 20) {
  }
  const Reply reply = Drain(*stream);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("read while you write"));
}

TEST_F(ServerTest, EndsACallThatStopsSending) {
  options_.idle_timeout = absl::Seconds(1);
  Serve();
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, 4));
  stream->Write(Data("abcd"));
  const Reply reply = Drain(*stream);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(
      reply.status.error_message(),
      HasSubstr("sent no whole message for 1s (--idle-timeout), after 4 bytes of gradient"));
}

TEST_F(ServerTest, EndsACallWhoseReplyIsNotRead) {
  options_.idle_timeout = absl::Seconds(1);
  Serve();
  const int64_t elements = 16 << 20;
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, elements));
  const v1::ClipGradNormRequest data = Data(std::string(1 << 20, '\1'));
  for (int64_t sent = 0; sent < elements * 4; sent += 1 << 20) ASSERT_TRUE(stream->Write(data));
  stream->WritesDone();
  // Finish() alone would wait for the replies to be read; only the end of the call frees the
  // budget.
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  AwaitNothingReserved();
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServerTest, RefusesAMessageThatIsTooLargeInItsOwnWords) {
  options_.max_message_bytes = 1 << 20;
  Serve();
  const Reply reply = Clip({ClipStart(1, 1 << 20), Data(std::string((1 << 20) + 1, 'x'))});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(),
              HasSubstr("has 1048581 bytes; the limit is 1048576 (--max-message-bytes). Send the "
                        "gradient in more and smaller messages, such as of 524288 bytes"));
}

TEST_F(ServerTest, RefusesAMessageManyTimesTooLargeBeforeItIsHeld) {
  options_.max_message_bytes = 1 << 20;
  Serve();
  const Reply reply = Clip({ClipStart(1, 1 << 24), Data(std::string(8 << 20, 'x'))});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServerTest, RefusesTooManyTensorsUnparsed) {
  options_.max_tensors = 3;
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 1);
  for (int i = 0; i < 3; ++i) *start.mutable_start()->add_tensors() = start.start().tensors(0);
  const Reply reply = Clip({start});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("(--max-tensors)"));
}

TEST_F(ServerTest, RefusesDeclarationsThatNeverFitWithTheLimitsFlag) {
  // 2 MiB of empty tensors: parsed, they take more than the 64 MiB that are there.
  options_.max_tensors = uint64_t{1} << 32;
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 1);
  for (int i = 0; i < (1 << 20); ++i) start.mutable_start()->add_tensors();
  const Reply reply = Clip({start});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(),
              HasSubstr("the limit is 67108864 (a sixteenth of --memory-budget"));
}

TEST_F(ServerTest, RefusesDeclarationsThatDoNotFitBesideOthersUntilThoseHaveEnded) {
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 0);
  start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
  // Near the limit of 131,072, at 256 bytes each: two such calls are more than the 64 MiB of one
  // caller.
  while (start.start().tensors_size() < 131'000) {
    *start.mutable_start()->add_tensors() = start.start().tensors(0);
  }
  v1::ClipGradNormRequest held = start;  // one element to be sent back, so that it reserves
  held.mutable_start()->set_reply(v1::REPLY_GRADIENT);
  held.mutable_start()->mutable_tensors(0)->set_shape(0, 1);
  grpc::ClientContext context;
  const auto holder = stub_->ClipGradNorm(&context);
  ASSERT_TRUE(holder->Write(held));
  while (server_->reserved_bytes() == 0) std::this_thread::yield();
  const Reply reply = Clip({start});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("of the 67108864 for one"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("(--memory-budget)"));
  context.TryCancel();
  Drain(*holder);
  while (!Clip({start}).status.ok()) std::this_thread::yield();
}

TEST_F(ServerTest, RefusesCompressedMessagesForTheyCouldBeBombs) {
  Serve();
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, 1 << 20));
  stream->Write(Data(std::string(4 << 20, '\0')));
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServerTest, ShortensANameThatWouldNotFitIntoAStatus) {
  Serve();
  v1::ClipGradNormRequest start = ClipStart(1, 1);
  start.mutable_start()->set_nonfinite(v1::NONFINITE_ERROR);
  start.mutable_start()->mutable_tensors(0)->set_name(std::string(1 << 20, 'n'));
  const Reply reply = Clip({start, Data(Bytes(std::vector<float>{NAN}))});
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("the first of them ...nnn"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("nnn[0]"));
}

template <typename Request>
struct MalformedStream {
  std::vector<Request> requests;
  grpc::StatusCode code;
  std::string says;
};

// For a start of two F32 elements.
template <typename Request>
std::vector<MalformedStream<Request>> MalformedStreams(const Request& start) {
  const auto data = [](const std::string& bytes) {
    Request request;
    request.set_data(bytes);
    return request;
  };
  const std::string eight(8, '\0');
  const Request empty;
  Request shared;
  shared.mutable_shared()->set_region("0123456789abcdef");
  return {
      {{}, grpc::StatusCode::INVALID_ARGUMENT, "without a start"},
      {{data(eight)}, grpc::StatusCode::INVALID_ARGUMENT, "start comes first"},
      {{data(eight), start}, grpc::StatusCode::INVALID_ARGUMENT, "start comes first"},
      {{start, start}, grpc::StatusCode::INVALID_ARGUMENT, "second start"},
      {{start, data(eight), start}, grpc::StatusCode::INVALID_ARGUMENT, "second start"},
      {{empty}, grpc::StatusCode::INVALID_ARGUMENT, "payload"},
      {{start, empty}, grpc::StatusCode::INVALID_ARGUMENT, "payload"},
      {{shared}, grpc::StatusCode::UNIMPLEMENTED, "shared"},
      {{start, shared}, grpc::StatusCode::UNIMPLEMENTED, "shared"},
      {{start, data(eight + "x")},
       grpc::StatusCode::INVALID_ARGUMENT,
       "tensors up to \"w\" declare 8 in all"},
      {{start, data(eight), data("x")}, grpc::StatusCode::INVALID_ARGUMENT, "declare 8 in all"},
      {{start}, grpc::StatusCode::INVALID_ARGUMENT, "\"w\" has 0 of 8"},
      {{start, data("xyz")}, grpc::StatusCode::INVALID_ARGUMENT, "\"w\" has 3 of 8"},
  };
}

TEST_F(ServerTest, RefusesMalformedStreamsToClip) {
  Serve();
  for (const auto& refused : MalformedStreams(ClipStart(1, 2))) {
    const Reply reply = Clip(refused.requests);
    EXPECT_EQ(reply.status.error_code(), refused.code) << refused.says;
    EXPECT_THAT(reply.status.error_message(), HasSubstr(refused.says));
    EXPECT_EQ(reply.gradient, "");
  }
  AwaitNothingReserved();
}

TEST_F(ServerTest, RefusesMalformedStreamsToMeasure) {
  Serve();
  v1::ComputeNormRequest start;
  *start.mutable_start()->mutable_tensors() = ClipStart(1, 2).start().tensors();
  for (const auto& refused : MalformedStreams(start)) {
    v1::NormResult norm;
    const grpc::Status status = Compute(refused.requests, norm);
    EXPECT_EQ(status.error_code(), refused.code) << refused.says;
    EXPECT_THAT(status.error_message(), HasSubstr(refused.says));
  }
  AwaitNothingReserved();
}

TEST_F(ServerTest, RefusesBytesThatAreNoMessage) {
  Serve();
  grpc::ClientContext context;
  grpc::GenericStub generic(channel_);
  grpc::CompletionQueue queue;
  const auto call = generic.PrepareCall(&context, "/gradclip.v1.GradClip/ClipGradNorm", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(&context);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  const grpc::Slice garbage(std::string("\xff\xff\xff"));
  call->Write(grpc::ByteBuffer(&garbage, 1), &context);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  grpc::Status status;
  call->Finish(&status, &context);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, SaysWhatItIs) {
  options_.backend = "cpu/baseline";
  Serve();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.version(), ServerVersion());
  ASSERT_GE(info.backends_size(), 1);
  EXPECT_EQ(info.backends(0).name(), "cpu/baseline");
  EXPECT_TRUE(info.backends(0).usable());
  EXPECT_EQ(info.max_message_bytes(), options_.max_message_bytes);
  EXPECT_EQ(info.max_call_bytes(), options_.max_call_bytes);
  EXPECT_EQ(info.memory_budget_bytes(), options_.memory_budget);
  EXPECT_EQ(info.max_tensors(), options_.max_tensors);
  EXPECT_EQ(info.memory_socket(), "");
  EXPECT_EQ(info.instance().size(), 16u);
}

TEST_F(ServerTest, ServesTcpAndUnixSocketsAtOnce) {
  const std::string path = testing::TempDir() + "/gradclip-" + std::to_string(getpid()) + ".sock";
  options_.listen = {"127.0.0.1:0", "unix:" + path};
  Serve();
  for (size_t address : {0, 1}) {
    stub_ = Connect(address);
    const Reply reply = Clip({ClipStart(1, 1), Data(Bytes<float>({2}))});
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.result.norm().total_norm(), 2);
  }
}

TEST_F(ServerTest, RefusesAnAddressThatIsTaken) {
  Serve();
  options_.listen = server_->addresses();
  const auto second = Server::Start(options_, log_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("cannot listen on " + options_.listen[0]));
}

TEST_F(ServerTest, RefusesAnUnknownBackend) {
  options_.backend = "cpu/quantum";
  const auto server = Server::Start(options_, log_);
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("cpu/baseline"));
}

TEST_F(ServerTest, AnswersManyCallsAtOnceWithTheSameBits) {
  Serve();
  std::vector<float> gradient(300'000);
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = std::sin(static_cast<float>(i));
  const std::string bytes = Bytes(gradient);
  const Reply first = Clip({ClipStart(1, gradient.size()), Data(bytes)});
  ASSERT_TRUE(first.status.ok());
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      std::vector<v1::ClipGradNormRequest> requests = {ClipStart(1, gradient.size())};
      const size_t message = 10'007 * (caller + 1);
      for (size_t at = 0; at < bytes.size(); at += message) {
        requests.push_back(Data(bytes.substr(at, message)));
      }
      for (int round = 0; round < 3; ++round) {
        const Reply reply = Clip(requests);
        ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
        ASSERT_EQ(reply.result.norm().total_norm(), first.result.norm().total_norm());
        ASSERT_EQ(reply.gradient, first.gradient);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  AwaitNothingReserved();
}

}  // namespace
}  // namespace gradclip
