// The server as a process of its own: what it writes to standard error, its unix sockets, and how
// it ends.
#include "tests/e2e/process.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "tests/client/files/file_bytes.h"
#include "tests/server/net/dial.h"
#include "tests/server/net/http_get.h"

namespace gradclip {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Pair;
using testing::StartsWith;

constexpr char kClipGradNorm[] = "/gradclip.v1.GradClip/ClipGradNorm";

// Sends bytes as messages of any method, whatever they mean, and returns how the call ended.
grpc::Status Send(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                  const std::vector<std::string>& messages) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto done = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(&context);
  bool open = done();
  for (const std::string& message : messages) {
    if (!open) break;
    const grpc::Slice slice(message);
    call->Write(grpc::ByteBuffer(&slice, 1), &context);
    open = done();
  }
  if (open) {
    call->WritesDone(&context);
    done();
  }
  grpc::ByteBuffer reply;
  do {
    call->Read(&reply, &context);
  } while (done());
  grpc::Status status;
  call->Finish(&status, &context);
  done();
  return status;
}

// Sends bytes to a TCP port as they are, and waits until the server closes the connection.
void SendRaw(const std::string& address, const std::string& bytes) {
  const FileDescriptor connection = Dial(address);
  ASSERT_TRUE(connection.ok());
  send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  shutdown(connection.get(), SHUT_WR);
  char buffer[4096];
  while (recv(connection.get(), buffer, sizeof(buffer), 0) > 0) {
  }
}

TEST(ServerProcess, WritesNothingButItsOwnLinesWhateverClientsSend) {
  ServerProcess server;
  const auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  struct Hostile {
    std::string method;
    std::string message;
  };
  const std::vector<Hostile> refused = {
      {kClipGradNorm, "\xff\xff\xff"},
      {"/gradclip.v1.GradClip/ComputeNorm", "\xff\xff\xff"},
      // start { tensors { name } }, start { group { job } }: no UTF-8.
      {kClipGradNorm, "\x0a\x06\x0a\x04\x0a\x02\xff\xfe"},
      {kClipGradNorm, "\x0a\x06\x1a\x04\x0a\x02\xff\xfe"},
      {kClipGradNorm, std::string(100'000, '\x0b')},  // groups in groups
      {kClipGradNorm, std::string(40 << 20, '\1')},
      {kClipGradNorm, ""},
  };
  for (const Hostile& hostile : refused) {
    EXPECT_FALSE(Send(channel, hostile.method, {hostile.message}).ok());
  }
  // There is nothing in its request, and so nothing of it is read.
  const std::string no_request(40 << 20, '\xff');
  EXPECT_TRUE(Send(channel, "/gradclip.v1.GradClip/GetServerInfo", {no_request}).ok());
  EXPECT_FALSE(Send(channel, "/gradclip.v1.GradClip/NoSuchMethod", {"x"}).ok());
  EXPECT_FALSE(Send(channel, "/grpc.health.v1.Health/Check", {"\xff\xff\xff"}).ok());
  SendRaw(server.address(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  SendRaw(server.address(), std::string("\x16\x03\x01\x02\x00\x01\x00", 7));  // TLS
  SendRaw(server.address(), std::string(20'000, '\xa5'));
  SendRaw(server.address(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + std::string(2'000, '\xff'));
  SendRaw(server.address(), "");

  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  std::istringstream lines(server.process().err());
  size_t calls = 0;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_THAT(line, MatchesRegex("20[0-9T:.-]*Z info .*"));
    calls += line.find(" info call ") != std::string::npos ? 1 : 0;
  }
  EXPECT_EQ(calls, refused.size() + 1);
}

TEST(ServerProcess, PrintsWhereItsMetricsAre) {
  ServerProcess server({"--metrics-listen=localhost:0"});
  const std::string line = server.process().ReadLine();
  ASSERT_THAT(line, MatchesRegex("metrics on http://localhost:[1-9][0-9]*/metrics"));
  const std::string port = line.substr(line.rfind(':') + 1, line.rfind('/') - line.rfind(':') - 1);
  EXPECT_THAT(HttpGet("127.0.0.1:" + port, "/metrics"), HasSubstr("\ngradclip_draining 0\n"));
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
}

TEST(ServerProcess, TakesTheAddressOfItsMetricsFromTheEnvironment) {
  ServerProcess server({}, {"GRADCLIP_METRICS_LISTEN=127.0.0.1:0"});
  const std::string address = server.ReadMetricsAddress();
  EXPECT_THAT(HttpGet(address, "/metrics"), HasSubstr("\nprocess_open_fds "));
}

TEST(ServerProcess, DoesNotStartWithoutItsMetrics) {
  ServerProcess first({"--metrics-listen=127.0.0.1:0"});
  const std::string taken = first.ReadMetricsAddress();
  Process second("gradclip-server", {"--listen=127.0.0.1:0", "--metrics-listen=" + taken});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_EQ(second.out(), "");
  EXPECT_EQ(second.err(), "gradclip-server: cannot listen on " + taken +
                              ": another process listens there; choose another address with "
                              "--metrics-listen\n");
  for (const char* bad : {"nonsense", "unix:/run/x", "127.0.0.1", "127.0.0.1:70000"}) {
    Process refused("gradclip-server",
                    {"--listen=127.0.0.1:0", std::string("--metrics-listen=") + bad});
    EXPECT_EQ(refused.Wait(), 1);
    EXPECT_EQ(refused.err(), std::string("gradclip-server: --metrics-listen=") + bad +
                                 ": expected HOST:PORT or [IPV6]:PORT, with a port of 0 to "
                                 "65535\n");
  }
  Process not_here("gradclip-server", {"--listen=127.0.0.1:0", "--metrics-listen=host.invalid:0"});
  EXPECT_EQ(not_here.Wait(), 1);
  EXPECT_THAT(not_here.err(), HasSubstr("cannot listen on host.invalid:0: "));
}

TEST(ServerProcess, LogsOneLineForEachCallHoweverItEnds) {
  ServerProcess server({"--log-format=json"});
  const auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  const auto stub = v1::GradClip::NewStub(channel);
  v1::ClipGradNormRequest start;
  start.mutable_start()->set_max_norm(1);
  v1::TensorSpec& tensor = *start.mutable_start()->add_tensors();
  tensor.set_name("w");
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.add_shape(2);
  v1::ClipGradNormRequest data;
  const std::vector<float> elements = {3, 4};
  data.set_data(std::string(reinterpret_cast<const char*>(elements.data()), 8));
  const std::string serialised_start = start.SerializeAsString();

  // One call after another, so that they are logged in this order.
  EXPECT_TRUE(Send(channel, kClipGradNorm, {serialised_start, data.SerializeAsString()}).ok());
  // (Without max_norm it is ComputeNorm's.)
  start.mutable_start()->clear_max_norm();
  EXPECT_TRUE(Send(channel, "/gradclip.v1.GradClip/ComputeNorm",
                   {start.SerializeAsString(), data.SerializeAsString()})
                  .ok());
  EXPECT_EQ(Send(channel, kClipGradNorm, {serialised_start}).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(
      Send(channel, kClipGradNorm, {serialised_start, std::string(40 << 20, '\1')}).error_code(),
      grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (const bool cancel : {true, false}) {
    grpc::ClientContext context;
    if (!cancel) {
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    }
    const auto stream = stub->ClipGradNorm(&context);
    v1::ClipGradNormRequest request;
    ASSERT_TRUE(request.ParseFromString(serialised_start));
    request.mutable_start()->set_total_norm(1);
    stream->Write(request);
    v1::ClipGradNormResponse result;
    ASSERT_TRUE(stream->Read(&result));
    if (cancel) context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }

  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  std::vector<nlohmann::json> calls(6);
  std::istringstream lines(server.process().err());
  size_t count = 0;
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json logged = nlohmann::json::parse(line);
    EXPECT_TRUE(logged.contains("ts") && logged.contains("level") && logged.contains("message"));
    if (!logged.contains("rpc")) continue;
    ++count;
    const uint64_t id = logged["call_id"];
    ASSERT_TRUE(id >= 1 && id <= calls.size()) << line;
    calls[id - 1] = logged;
    EXPECT_THAT(logged["peer"].get<std::string>(), StartsWith("ipv4:127.0.0.1:")) << line;
    EXPECT_GE(logged["milliseconds"], 0) << line;
    EXPECT_EQ(logged["tensors"], 1) << line;
    EXPECT_THAT(logged["backend"].get<std::string>(), StartsWith("cpu/")) << line;
  }
  ASSERT_EQ(count, calls.size()) << server.process().err();
  EXPECT_EQ(calls[0]["rpc"], "ClipGradNorm");
  EXPECT_EQ(calls[0]["status"], "OK");
  EXPECT_EQ(calls[0]["bytes_in"], 8);
  EXPECT_EQ(calls[0]["bytes_out"], 8);
  EXPECT_EQ(calls[0]["norm"], 5);
  EXPECT_EQ(calls[0]["coefficient"], 1 / (5 + 1e-6));
  EXPECT_EQ(calls[1]["rpc"], "ComputeNorm");
  EXPECT_EQ(calls[1]["status"], "OK");
  EXPECT_EQ(calls[1]["norm"], 5);
  EXPECT_FALSE(calls[1].contains("coefficient"));
  const struct {
    std::string status;
    std::string says;
  } ends[] = {
      {"INVALID_ARGUMENT", "ended after 0 of the 8 declared bytes"},
      {"CANCELLED", "several times over the limit of 8388608, --max-message-bytes"},
      {"CANCELLED", "the caller cancelled or went away after 0 of 8 bytes"},
      {"DEADLINE_EXCEEDED", "the caller's deadline has passed"},
  };
  for (size_t i = 0; i < std::size(ends); ++i) {
    EXPECT_EQ(calls[2 + i]["status"], ends[i].status) << calls[2 + i];
    EXPECT_THAT(calls[2 + i]["status_message"].get<std::string>(), HasSubstr(ends[i].says));
    EXPECT_FALSE(calls[2 + i].contains("norm"));
  }
}

TEST(ServerProcess, LogsTheTraceThatACallBelongsTo) {
  constexpr char kTrace[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  constexpr char kOther[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
  ServerProcess server({"--log-format=json"});
  const auto stub = v1::GradClip::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  const std::vector<std::vector<std::string>> calls = {
      {kTrace}, {}, {"00-not-a-trace"}, {kTrace, kOther}, {kOther}};
  for (const std::vector<std::string>& traces : calls) {
    grpc::ClientContext context;
    for (const std::string& trace : traces) context.AddMetadata("traceparent", trace);
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub->GetServerInfo(&context, {}, &info).ok());
  }
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);

  std::map<uint64_t, std::string> logged;  // by call
  std::istringstream lines(server.process().err());
  for (std::string text; std::getline(lines, text);) {
    const nlohmann::json line = nlohmann::json::parse(text);
    if (!line.contains("rpc")) continue;
    EXPECT_EQ(line.contains("span_id"), line.contains("trace_id")) << text;
    logged[line["call_id"]] = line.value("trace_id", "none") + "/" + line.value("span_id", "");
  }
  EXPECT_THAT(logged,
              testing::ElementsAre(Pair(1, "4bf92f3577b34da6a3ce929d0e0e4736/00f067aa0ba902b7"),
                                   Pair(2, "none/"), Pair(3, "none/"), Pair(4, "none/"),
                                   Pair(5, "0af7651916cd43dd8448eb211c80319c/b7ad6b7169203331")));
}

class UnixSocket : public testing::Test {
 protected:
  // Whether a server answers at path_.
  bool IsServed() const {
    Process health("gradclip", {"health", "--server", "unix:" + path_});
    return health.Wait() == 0;
  }

  const Folder folder_;
  const std::string path_ = folder_ / "socket";
  const std::string listen_ = "--listen=unix:" + path_;
};

TEST_F(UnixSocket, LeftBehindByAKilledServerIsReplaced) {
  {
    const ServerProcess killed({listen_});
    ASSERT_TRUE(IsServed());
  }
  ASSERT_TRUE(std::filesystem::is_socket(path_));
  ServerProcess server({listen_});
  EXPECT_TRUE(IsServed());
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(UnixSocket, OfALiveServerIsLeftToIt) {
  const ServerProcess server({listen_});
  for (const std::string& spelled : {path_, "//" + path_}) {
    Process second("gradclip-server", {"--listen=unix:" + spelled});
    EXPECT_EQ(second.Wait(), 1);
    EXPECT_EQ(second.err(), "gradclip-server: cannot listen on unix:" + spelled +
                                ": another process does; stop it, or choose another path "
                                "with --listen\n");
    EXPECT_TRUE(IsServed());
  }
}

TEST_F(UnixSocket, IsNotPutInPlaceOfAFile) {
  WriteFile(path_, "precious");
  Process server("gradclip-server", {listen_});
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.err(), HasSubstr("cannot listen on unix:" + path_));
  EXPECT_EQ(ReadFile(path_), "precious");
}

}  // namespace
}  // namespace gradclip
