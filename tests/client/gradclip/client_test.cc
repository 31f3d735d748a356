// The client against a server that keeps to the contract.
#include "gradclip/client.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/client/gradclip/fake_server.h"

namespace gradclip {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::vector<float> Numbers(size_t count) {
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = static_cast<float>(i) + 0.5f;
  return numbers;
}

Tensor TensorOf(const std::string& name, std::vector<float>& values) {
  return {name, DType::kFloat32, {static_cast<int64_t>(values.size())}, values.data()};
}

ClipOptions MaxNorm(double max_norm, ReplyMode reply = ReplyMode::kCoefficient) {
  ClipOptions options;
  options.max_norm = max_norm;
  options.reply = reply;
  return options;
}

class ClientTest : public ::testing::Test {
 protected:
  // Answers every clip with this result and, where asked for, the data doubled.
  void AnswerClips(double coefficient, bool skipped = false) {
    server_.clip = [this, coefficient, skipped](ClipStream& stream) {
      auto received = ReadAll(stream);
      const bool follows = received.starts.at(0).reply() == v1::REPLY_GRADIENT;
      SendResult(stream, coefficient, follows, skipped);
      if (follows) {
        std::string data = received.data();
        for (size_t i = 0; i + sizeof(float) <= data.size(); i += sizeof(float)) {
          float value;
          std::memcpy(&value, &data[i], sizeof(value));
          value *= 2;
          std::memcpy(&data[i], &value, sizeof(value));
        }
        for (size_t at = 0; at < data.size(); at += 1000) SendData(stream, data.substr(at, 1000));
      }
      clip_.Set(std::move(received));
      return grpc::Status::OK;
    };
  }

  // What the last clip sent.
  Received<v1::ClipGradNormStart> clip() const { return clip_.Get(); }

  Shared<Received<v1::ClipGradNormStart>> clip_;
  FakeServer server_;
  Client client_{server_.address()};
};

TEST_F(ClientTest, SendsTheGradientAndAnswersWithTheNorm) {
  Shared<Received<v1::ComputeNormStart>> norm;
  server_.compute_norm = [&norm](NormStream& stream, v1::ComputeNormResponse& response) {
    norm.Set(ReadAll(stream));
    v1::NormResult& result = *response.mutable_norm();
    result.set_total_norm(5);
    result.set_nonfinite_elements(3);
    result.set_first_nonfinite("b[2]");
    result.set_backend("cpu/test");
    result.set_group_nonfinite_elements(4);
    v1::TensorNorm& tensor = *result.add_tensors();
    tensor.set_norm(1);
    tensor.set_nonfinite_elements(2);
    tensor.set_zero_elements(6);
    return grpc::Status::OK;
  };
  std::vector<float> a = Numbers(3), b = Numbers(5000), c;
  const std::vector<Tensor> gradient = {TensorOf("a", a), TensorOf("c", c), TensorOf("b", b)};
  NormOptions options;
  options.norm_type = kInfinity;
  options.per_tensor = true;
  options.pre_scale = 0.25;
  const auto answer = client_.ComputeNorm(gradient, options);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->total_norm, 5);
  EXPECT_EQ(answer->nonfinite_elements, 3u);
  EXPECT_EQ(answer->first_nonfinite, "b[2]");
  EXPECT_EQ(answer->backend, "cpu/test");
  EXPECT_EQ(answer->group_nonfinite_elements, 4u);
  ASSERT_EQ(answer->tensors.size(), 1u);
  EXPECT_EQ(answer->tensors[0].norm, 1);
  EXPECT_EQ(answer->tensors[0].nonfinite_elements, 2u);
  EXPECT_EQ(answer->tensors[0].zero_elements, 6u);

  const Received<v1::ComputeNormStart> received = norm.Get();
  ASSERT_EQ(received.starts.size(), 1u);
  const v1::ComputeNormStart& start = received.starts[0];
  EXPECT_EQ(start.tensors_size(), 3);
  EXPECT_EQ(start.norm().norm_type(), kInfinity);
  EXPECT_TRUE(start.norm().per_tensor());
  EXPECT_EQ(start.norm().pre_scale(), 0.25);
  EXPECT_EQ(received.data(), BytesOf(a) + BytesOf(b));
}

// What gRPC's servers do to calls that come in the moment in which they stop.
TEST_F(ClientTest, TriesAgainWhatAServerThatStopsHasCancelled) {
  std::atomic<int> calls = 0;
  std::atomic<const char*> details = "CANCELLED";
  server_.compute_norm = [&](NormStream& stream, v1::ComputeNormResponse& response) {
    ReadAll(stream);
    response.mutable_norm()->set_total_norm(5);
    return ++calls == 1 ? grpc::Status(grpc::StatusCode::CANCELLED, details.load())
                        : grpc::Status::OK;
  };
  std::vector<float> a = Numbers(3);
  const std::vector<Tensor> gradient = {TensorOf("a", a)};
  const auto answer = client_.ComputeNorm(gradient, {});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(calls, 2);
  // Another cancelled it, and says why.
  calls = 0;
  details = "not wanted";
  EXPECT_EQ(client_.ComputeNorm(gradient, {}).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 1);
}

TEST_F(ClientTest, SendsNoTraceThatIsNone) {
  server_.compute_norm = [](NormStream& stream, v1::ComputeNormResponse&) {
    ReadAll(stream);
    return grpc::Status::OK;
  };
  std::vector<float> a = Numbers(3);
  const std::vector<Tensor> gradient = {TensorOf("a", a)};
  CallOptions call;
  call.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_TRUE(client_.ComputeNorm(gradient, {}, call).ok());
  call.traceparent += "\n";
  const absl::Status refused = client_.ComputeNorm(gradient, {}, call).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("CallOptions::traceparent"));
  EXPECT_EQ(client_.CheckHealth(call).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, SendsTheSameStreamInMessagesOfEverySize) {
  std::vector<float> a = Numbers(3), b = Numbers(20000), c = Numbers(1);
  const std::vector<Tensor> gradient = {TensorOf("a", a), TensorOf("b", b), TensorOf("c", c)};
  const std::string all = BytesOf(a) + BytesOf(b) + BytesOf(c);
  for (uint64_t message_bytes : {uint64_t{37}, uint64_t{1000}, uint64_t{8192}, uint64_t{1} << 20}) {
    AnswerClips(1);
    ClientOptions options;
    options.message_bytes = message_bytes;
    Client client(server_.address(), options);
    const auto answer = client.Clip(gradient, MaxNorm(1));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(clip().data(), all);
    EXPECT_EQ(clip().messages.size(), (all.size() + message_bytes - 1) / message_bytes);
    EXPECT_EQ(clip().messages[0].size(), std::min<uint64_t>(message_bytes, all.size()));
  }
}

TEST_F(ClientTest, SendsThreeByteMessages) {
  AnswerClips(1);
  ClientOptions options;
  options.message_bytes = 3;
  Client client(server_.address(), options);
  std::vector<float> a = Numbers(50);
  ASSERT_TRUE(client.Clip({{TensorOf("a", a)}}, MaxNorm(1)).ok());
  EXPECT_EQ(clip().data(), BytesOf(a));
  EXPECT_EQ(clip().messages.size(), 67u);
}

TEST_F(ClientTest, DeclaresEveryOptionOfAClip) {
  AnswerClips(1);
  std::vector<float> a = Numbers(2);
  ClipOptions options = MaxNorm(0.75, ReplyMode::kGradientIfChanged);
  options.epsilon = 1e-3;
  options.nonfinite = NonfinitePolicy::kZero;
  options.total_norm = 9;
  options.norm.norm_type = 1;
  ASSERT_TRUE(client_.Clip({{TensorOf("a", a)}}, options).ok());
  const v1::ClipGradNormStart start = clip().starts.at(0);
  EXPECT_EQ(start.max_norm(), 0.75);
  EXPECT_EQ(start.epsilon(), 1e-3);
  EXPECT_EQ(start.nonfinite(), v1::NONFINITE_ZERO);
  EXPECT_EQ(start.reply(), v1::REPLY_GRADIENT_IF_CHANGED);
  EXPECT_EQ(start.total_norm(), 9);
  EXPECT_EQ(start.norm().norm_type(), 1);
  EXPECT_FALSE(start.has_group());

  ASSERT_TRUE(client_.Clip({{TensorOf("a", a)}}, MaxNorm(kInfinity)).ok());
  EXPECT_EQ(clip().starts.at(0).reply(), v1::REPLY_COEFFICIENT);
  EXPECT_FALSE(clip().starts.at(0).has_total_norm());
  EXPECT_EQ(clip().starts.at(0).max_norm(), kInfinity);
}

TEST_F(ClientTest, ScalesTheCallersMemoryByTheCoefficient) {
  AnswerClips(0.5);
  std::vector<float> a = {2, -4}, b = {6};
  const auto answer = client_.Clip({{TensorOf("a", a), TensorOf("b", b)}}, MaxNorm(1));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->coefficient, 0.5);
  EXPECT_FALSE(answer->skipped);
  EXPECT_THAT(a, ElementsAre(1, -2));
  EXPECT_THAT(b, ElementsAre(3));
}

TEST_F(ClientTest, AssignsZeroOrTouchesNothingWhereTheStepIsSkipped) {
  std::vector<float> a = {HUGE_VALF, -4};
  AnswerClips(1, /*skipped=*/true);
  auto answer = client_.Clip({{TensorOf("a", a)}}, MaxNorm(1));
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(answer->skipped);
  EXPECT_THAT(a, ElementsAre(kInfinity, -4));
  AnswerClips(0, /*skipped=*/true);
  answer = client_.Clip({{TensorOf("a", a)}}, MaxNorm(1));
  ASSERT_TRUE(answer.ok());
  EXPECT_THAT(a, ElementsAre(0, 0));
}

TEST_F(ClientTest, TakesClippedBytesBackInOrder) {
  AnswerClips(0.5);  // this server doubles, so that it can't have been the client
  std::vector<float> a = Numbers(3), b = Numbers(70000);
  std::vector<float> doubled = b;
  for (float& value : doubled) value *= 2;
  const auto answer =
      client_.Clip({{TensorOf("a", a), TensorOf("b", b)}}, MaxNorm(1, ReplyMode::kGradient));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(a, ElementsAre(1, 3, 5));
  EXPECT_EQ(b, doubled);
}

TEST_F(ClientTest, LeavesTheMemoryWhereNothingChanged) {
  AnswerClips(1);
  std::vector<float> a = {2, -4};
  const auto answer = client_.Clip({{TensorOf("a", a)}}, MaxNorm(1, ReplyMode::kGradientIfChanged));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(a, ElementsAre(2, -4));
}

TEST_F(ClientTest, ReadsWhileItWritesWhereTheTotalNormIsKnown) {
  std::atomic<uint64_t> messages = 0;
  server_.clip = [&](ClipStream& stream) {
    v1::ClipGradNormRequest request;
    stream.Read(&request);
    SendResult(stream, 0.5, /*gradient_follows=*/true);
    while (stream.Read(&request)) {
      std::string data = request.data();
      std::reverse(data.begin(), data.end());
      SendData(stream, data);
      ++messages;
    }
    return grpc::Status::OK;
  };
  // Far more than sockets and windows hold: writing all of it before reading would not end.
  std::vector<float> a(size_t{16} << 20, 1.0f);
  std::string reversed = BytesOf({1.0f});
  std::reverse(reversed.begin(), reversed.end());
  float expected;
  std::memcpy(&expected, reversed.data(), sizeof(expected));
  ClipOptions options = MaxNorm(1, ReplyMode::kGradient);
  options.total_norm = 2;
  CallOptions call;
  call.timeout = absl::Seconds(60);
  const auto answer = client_.Clip({{TensorOf("a", a)}}, options, call);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(messages, 64u);
  EXPECT_EQ(std::count(a.begin(), a.end(), expected), static_cast<int64_t>(a.size()));
}

TEST_F(ClientTest, ClipsNothing) {
  AnswerClips(1);
  const auto answer = client_.Clip({}, MaxNorm(1));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(clip().starts.size(), 1u);
  EXPECT_EQ(clip().messages.size(), 0u);
  Tensor empty{"e", DType::kFloat64, {3, 0}, nullptr};
  EXPECT_TRUE(client_.Clip({&empty, 1}, MaxNorm(1, ReplyMode::kGradient)).ok());
}

TEST_F(ClientTest, SendsAStartOfManyTensors) {
  AnswerClips(0.5);
  std::vector<float> memory(4000 * 64, 2.0f);
  std::vector<Tensor> gradient;
  for (int i = 0; i < 4000; ++i) {
    gradient.push_back({absl::StrCat("layers.", i, ".attention.output.weight"),
                        DType::kFloat32,
                        {8, 8},
                        &memory[static_cast<size_t>(i) * 64]});
  }
  for (int round = 0; round < 2; ++round) {
    const auto answer = client_.Clip(gradient, MaxNorm(1));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(clip().starts.at(0).tensors_size(), 4000);
    EXPECT_EQ(clip().starts.at(0).tensors(3999).name(), "layers.3999.attention.output.weight");
    EXPECT_EQ(clip().messages.size(), 1u);
  }
  EXPECT_THAT(memory, Each(0.5f));
}

TEST_F(ClientTest, ReportsProgressOfBothDirections) {
  AnswerClips(1);
  std::vector<float> a = Numbers(2000);
  ClientOptions options;
  options.message_bytes = 4000;
  Client client(server_.address(), options);
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  CallOptions call;
  call.progress = [&](uint64_t done, uint64_t total) { seen.emplace_back(done, total); };
  ASSERT_TRUE(client.Clip({{TensorOf("a", a)}}, MaxNorm(1), call).ok());
  EXPECT_THAT(seen, ElementsAre(Pair(0, 8000), Pair(4000, 8000), Pair(8000, 8000)));

  seen.clear();
  ASSERT_TRUE(client.Clip({{TensorOf("a", a)}}, MaxNorm(1, ReplyMode::kGradient), call).ok());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_THAT(seen, ::testing::Contains(Pair(8000, 16000)));
  EXPECT_THAT(seen.back(), Pair(16000, 16000));

  seen.clear();
  ASSERT_TRUE(
      client.Clip({{TensorOf("a", a)}}, MaxNorm(1, ReplyMode::kGradientIfChanged), call).ok());
  EXPECT_THAT(seen.back(), Pair(16000, 16000));
}

TEST_F(ClientTest, ServesEightThreadsAtOnce) {
  server_.clip = [](ClipStream& stream) {
    const auto received = ReadAll(stream);
    SendResult(stream, 1.0 / received.starts.at(0).tensors(0).shape(0));
    return grpc::Status::OK;
  };
  std::atomic<int> right = 0;
  std::vector<std::jthread> threads;
  for (int thread = 1; thread <= 8; ++thread) {
    threads.emplace_back([this, &right, thread] {
      for (int call = 0; call < 10; ++call) {
        const size_t size = static_cast<size_t>(thread) * 3000;
        std::vector<float> a(size, static_cast<float>(size));
        const auto answer = client_.Clip({{TensorOf("a", a)}}, MaxNorm(1));
        right += answer.ok() && std::count(a.begin(), a.end(), 1.0f) == static_cast<int64_t>(size);
      }
    });
  }
  threads.clear();
  EXPECT_EQ(right, 80);
}

TEST_F(ClientTest, AnswersWithTheServersInfo) {
  server_.info = [](v1::GetServerInfoResponse& response) {
    response.set_version("1.2.3");
    v1::Backend& backend = *response.add_backends();
    backend.set_name("cpu/test");
    backend.set_usable(true);
    backend.set_detail("for tests");
    response.set_max_message_bytes(1);
    response.set_max_call_bytes(2);
    response.set_memory_budget_bytes(3);
    response.set_memory_socket("/run/memory");
    response.set_max_tensors(4);
    response.set_instance("abc");
    return grpc::Status::OK;
  };
  const auto info = client_.GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version, "1.2.3");
  ASSERT_EQ(info->backends.size(), 1u);
  EXPECT_EQ(info->backends[0].name, "cpu/test");
  EXPECT_TRUE(info->backends[0].usable);
  EXPECT_EQ(info->backends[0].detail, "for tests");
  EXPECT_EQ(info->max_message_bytes, 1u);
  EXPECT_EQ(info->max_call_bytes, 2u);
  EXPECT_EQ(info->memory_budget_bytes, 3u);
  EXPECT_EQ(info->memory_socket, "/run/memory");
  EXPECT_EQ(info->max_tensors, 4u);
  EXPECT_EQ(info->instance, "abc");
}

TEST_F(ClientTest, AsksForHealth) {
  EXPECT_TRUE(client_.CheckHealth().ok());
  server_.server().GetHealthCheckService()->SetServingStatus(false);
  const absl::Status health = client_.CheckHealth();
  EXPECT_EQ(health.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(health.message(), HasSubstr("NOT_SERVING"));
  EXPECT_THAT(health.message(), HasSubstr(server_.address()));
}

TEST_F(ClientTest, RefusesWhatItCanTellIsWrongBeforeItSends) {
  server_.clip = [](ClipStream&) { return grpc::Status(grpc::StatusCode::INTERNAL, "reached"); };
  std::vector<float> a = {1, 2};
  const auto refusal = [this](const Tensor& tensor, const ClipOptions& options) {
    const absl::Status status = client_.Clip({&tensor, 1}, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({"w", DType::kFloat32, {2, 3}, nullptr}, MaxNorm(1)),
            "tensor \"w\": data is null, and the shape declares 6 elements");
  EXPECT_THAT(refusal({"", DType::kFloat32, {-1}, a.data()}, MaxNorm(1)),
              HasSubstr("tensor #0: shape [-1]"));
  EXPECT_THAT(refusal(TensorOf("a", a), ClipOptions()), HasSubstr("max_norm is -1"));
  EXPECT_THAT(refusal(TensorOf("a", a), MaxNorm(std::nan(""))), HasSubstr("max_norm is nan"));
  const absl::Status tied =
      client_.Clip({{TensorOf("a", a), TensorOf("b", a)}}, MaxNorm(1)).status();
  EXPECT_EQ(tied.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tied.message(), HasSubstr("tensors \"a\" and \"b\" overlap in memory"));
  EXPECT_THAT(a, ElementsAre(1, 2));
  EXPECT_EQ(client_.ComputeNorm({{Tensor{"w", DType::kFloat32, {}, nullptr}}}).status().code(),
            absl::StatusCode::kInvalidArgument);

  ClientOptions options;
  options.message_bytes = 0;
  Client client(server_.address(), options);
  const absl::Status status = client.Clip({{TensorOf("a", a)}}, MaxNorm(1)).status();
  EXPECT_THAT(status.message(), HasSubstr("message_bytes is 0"));
  EXPECT_EQ(Client("nowhere").CheckHealth().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gradclip
