// gRPC's health, reflection and channelz services.
#include "server/rpc/health.h"

#include <gmock/gmock.h>
#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/rpc/generic_call.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";

// HealthCheckResponse, serialised.
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";
constexpr char kServiceUnknown[] = "\x08\x03";

class Health : public ServerTest {
 protected:
  using Calls = std::vector<std::unique_ptr<GenericCall>>;

  // HealthCheckRequest, serialised.
  static std::string Request(const std::string& service) {
    if (service.empty()) return "";
    return "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
  }

  std::unique_ptr<GenericCall> Start(const std::string& method) {
    return std::make_unique<GenericCall>(channel_, method);
  }

  // What Check answers.
  std::string Check(const std::string& service, grpc::Status* status) {
    GenericCall call(channel_, kCheck);
    call.WriteLast(Request(service));
    const std::string response = call.Read().value_or("");
    *status = call.Finish();
    return response;
  }
  std::string Check(const std::string& service = "") {
    grpc::Status status;
    return Check(service, &status);
  }
};

TEST_F(Health, IsToldOfTheServiceAndTheWholeServer) {
  Serve();
  EXPECT_EQ(Check(""), kServing);
  EXPECT_EQ(Check("gradclip.v1.GradClip"), kServing);
  grpc::Status status;
  EXPECT_EQ(Check("gradclip.v1.Nothing", &status), "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(Health, TurnsNotServingForWatchersWhenTheServerDrains) {
  for (const std::string service : {"", "gradclip.v1.GradClip"}) {
    Serve();
    GenericCall watch(channel_, kWatch);
    ASSERT_TRUE(watch.WriteLast(Request(service)));
    EXPECT_EQ(watch.Read(), kServing);
    // A watch has no end of its own, and yet does not hold up the drain.
    std::thread drain([&] { server_->Drain(absl::Hours(1)); });
    EXPECT_EQ(watch.Read(), kNotServing);
    drain.join();
    EXPECT_EQ(watch.Read(), std::nullopt);
    EXPECT_FALSE(watch.Finish().ok());
  }
}

TEST_F(Health, OfAnUnknownServiceCanBeWatched) {
  Serve();
  GenericCall watch(channel_, kWatch);
  ASSERT_TRUE(watch.WriteLast(Request("nothing")));
  EXPECT_EQ(watch.Read(), kServiceUnknown);
}

TEST_F(Health, TakesNoRequestThatIsNone) {
  Serve();
  for (const std::string& request : {std::string("\xff\xff\xff"), std::string(10'000, '\1')}) {
    GenericCall call(channel_, kCheck);
    call.WriteLast(request);
    EXPECT_EQ(call.Read(), std::nullopt);
    EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(Health, ReceivesSoManyRequestsOfAHostAtOnce) {
  Serve();
  Calls calls;
  // A check may come before a call that was started earlier, which is refused then.
  grpc::Status status;
  while (Check("", &status) == kServing) calls.push_back(Start(kCheck));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_GE(calls.size(), HealthService::kMaxReceivingPerHost);
  // The main service goes on.
  EXPECT_TRUE(Clip({ClipStart(1, 0)}).status.ok());

  for (const auto& call : calls) {
    if (call->WriteLast("") && call->Read() == kServing) break;
  }
  EXPECT_EQ(Check(), kServing);
}

TEST_F(Health, WaitsForARequestSoLong) {
  options_.idle_timeout = absl::Milliseconds(50);
  Serve();
  for (const char* method : {kCheck, kWatch}) {
    GenericCall call(channel_, method);
    EXPECT_EQ(call.Read(), std::nullopt);
    const grpc::Status status = call.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(status.error_message(), HasSubstr("--idle-timeout"));
  }
}

TEST_F(Health, CanBeWatchedForLonger) {
  options_.idle_timeout = absl::Milliseconds(500);
  Serve();
  GenericCall watch(channel_, kWatch);
  ASSERT_TRUE(watch.WriteLast(""));
  EXPECT_EQ(watch.Read(), kServing);
  std::this_thread::sleep_for(std::chrono::seconds(2));
  std::thread drain([&] { server_->Drain(absl::Hours(1)); });
  EXPECT_EQ(watch.Read(), kNotServing);
  drain.join();
}

TEST_F(Health, IsWatchedBySoManyOfAHost) {
  Serve();
  Calls watches;
  const auto watch = [&] {
    watches.push_back(Start(kWatch));
    EXPECT_TRUE(watches.back()->WriteLast(""));
    return watches.back()->Read();
  };
  for (uint64_t i = 0; i < HealthService::kMaxWatchingPerHost; ++i) ASSERT_EQ(watch(), kServing);
  EXPECT_EQ(watch(), std::nullopt);
  EXPECT_EQ(watches.back()->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Check(), kServing);

  watches.erase(watches.begin());
  while (watch() != kServing) watches.pop_back();
}

class ReflectionTest : public ServerTest {
 protected:
  static constexpr char kMethod[] =
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  static constexpr char kListServices[] = "\x3a\x01*";
};

TEST_F(ReflectionTest, NamesTheServices) {
  Serve();
  GenericCall call(channel_, kMethod);
  ASSERT_TRUE(call.WriteLast(kListServices));
  const std::string services = call.Read().value_or("");
  EXPECT_THAT(services, HasSubstr("gradclip.v1.GradClip"));
  EXPECT_THAT(services, HasSubstr("grpc.health.v1.Health"));
  EXPECT_TRUE(call.Finish().ok());
}

// What tools ask for next.
TEST_F(ReflectionTest, DescribesTheContract) {
  Serve();
  const std::string symbol = "gradclip.v1.GradClip";
  GenericCall call(channel_, kMethod);
  // ServerReflectionRequest.file_containing_symbol
  ASSERT_TRUE(call.WriteLast(std::string("\x22") + static_cast<char>(symbol.size()) + symbol));
  EXPECT_THAT(call.Read().value_or(""),
              testing::AllOf(HasSubstr("ClipGradNormResponse"), HasSubstr("GetServerInfo")));
  EXPECT_TRUE(call.Finish().ok());
}

TEST_F(ReflectionTest, CanBeOff) {
  options_.reflection = false;
  Serve();
  GenericCall call(channel_, kMethod);
  call.WriteLast(kListServices);
  EXPECT_EQ(call.Read(), std::nullopt);
  EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

// It keeps a thread for every stream.
TEST_F(ReflectionTest, DoesNotStarveTheServer) {
  Serve();
  std::vector<std::unique_ptr<GenericCall>> calls;
  for (int i = 0; i < 100; ++i) calls.push_back(std::make_unique<GenericCall>(channel_, kMethod));
  EXPECT_TRUE(Clip({ClipStart(1, 0)}).status.ok());
  size_t refused = 0;
  for (const auto& call : calls) {
    call->WriteLast(kListServices);
    if (!call->Read().has_value()) {
      EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0U);
  EXPECT_LT(refused, calls.size());
}

class ChannelzTest : public ServerTest {
 protected:
  // What `field` of `message` says, of fields that are messages, or of a number.
  static std::string Message(const google::protobuf::UnknownFieldSet& message, int number) {
    for (int i = 0; i < message.field_count(); ++i) {
      const google::protobuf::UnknownField& field = message.field(i);
      if (field.number() != number) continue;
      if (field.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
        return field.length_delimited();
      }
      return std::to_string(field.varint());
    }
    return "";
  }
  static std::string Message(const std::string& serialised, int number) {
    google::protobuf::UnknownFieldSet message;
    EXPECT_TRUE(message.ParseFromString(serialised));
    return Message(message, number);
  }

  // The response of GetServers; none where there is no such service.
  std::optional<std::string> GetServers() {
    GenericCall call(channel_, "/grpc.channelz.v1.Channelz/GetServers");
    call.WriteLast("");
    std::optional<std::string> response = call.Read();
    const grpc::Status status = call.Finish();
    EXPECT_EQ(status.error_code(),
              response.has_value() ? grpc::StatusCode::OK : grpc::StatusCode::UNIMPLEMENTED);
    return response;
  }
};

TEST_F(ChannelzTest, IsThereByRequestAlone) {
  Serve();
  EXPECT_EQ(GetServers(), std::nullopt);
  options_.channelz = true;
  Serve();
  EXPECT_NE(GetServers(), std::nullopt);
  // gRPC would go on to give it to every server of the process.
  options_.channelz = false;
  Serve();
  EXPECT_EQ(GetServers(), std::nullopt);
}

TEST_F(ChannelzTest, CountsCalls) {
  options_.channelz = true;
  options_.reflection = false;
  Serve();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Clip({ClipStart(1, 0)}).status.ok());
  // GetServersResponse.server.data.calls_started, with the call that asks.
  const std::string response = GetServers().value_or("");
  EXPECT_EQ(Message(Message(Message(response, 1), 2), 2), "4");
}

}  // namespace
}  // namespace gradclip
