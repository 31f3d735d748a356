// A server that does what a test scripts, over the generated (typed) service, and records what
// came. Handlers run on the server's threads.
#ifndef GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_SERVER_H_
#define GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_SERVER_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gradclip/v1/gradclip.grpc.pb.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"

namespace gradclip {

// What one call sent.
template <typename Start>
struct Received {
  std::vector<Start> starts;
  std::vector<std::string> messages;  // the data of each
  std::vector<v1::SharedRanges> shared;

  std::string data() const {
    std::string all;
    for (const std::string& message : messages) all += message;
    return all;
  }
};

template <typename Start, typename Stream, typename Request>
Received<Start> ReadAll(Stream& stream, Request request) {
  Received<Start> received;
  while (stream.Read(&request)) {
    if (request.has_start()) received.starts.push_back(request.start());
    if (request.has_data()) received.messages.push_back(request.data());
    if (request.has_shared()) received.shared.push_back(request.shared());
  }
  return received;
}

using NormStream = grpc::ServerReader<v1::ComputeNormRequest>;
using ClipStream = grpc::ServerReaderWriter<v1::ClipGradNormResponse, v1::ClipGradNormRequest>;

inline Received<v1::ComputeNormStart> ReadAll(NormStream& stream) {
  return ReadAll<v1::ComputeNormStart>(stream, v1::ComputeNormRequest());
}
inline Received<v1::ClipGradNormStart> ReadAll(ClipStream& stream) {
  return ReadAll<v1::ClipGradNormStart>(stream, v1::ClipGradNormRequest());
}

inline void SendResult(ClipStream& stream, double coefficient, bool gradient_follows = false,
                       bool skipped = false) {
  v1::ClipGradNormResponse response;
  response.mutable_result()->set_coefficient(coefficient);
  response.mutable_result()->set_gradient_follows(gradient_follows);
  response.mutable_result()->set_skipped(skipped);
  stream.Write(response);
}

inline void SendData(ClipStream& stream, const std::string& data) {
  v1::ClipGradNormResponse response;
  response.set_data(data);
  stream.Write(response);
}

// A value that handlers and the test take turns with. A call keeps them in order, but over the
// network, where ThreadSanitizer does not see it. Thread-safe.
template <typename Value>
class Shared {
 public:
  void Set(Value value) {
    const std::lock_guard lock(mutex_);
    value_ = std::move(value);
  }
  Value Get() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }

 private:
  mutable std::mutex mutex_;
  Value value_{};
};

// What the server does for one RPC. A test sets it between its calls.
template <typename Signature>
class Handler {
 public:
  Handler& operator=(std::function<Signature> function) {
    function_.Set(std::move(function));
    return *this;
  }

  template <typename... Arguments>
  grpc::Status operator()(Arguments&... arguments) const {
    return function_.Get()(arguments...);
  }

 private:
  Shared<std::function<Signature>> function_;
};

class FakeServer : public v1::GradClip::Service {
 public:
  Handler<grpc::Status(NormStream& stream, v1::ComputeNormResponse& response)> compute_norm;
  Handler<grpc::Status(ClipStream& stream)> clip;
  Handler<grpc::Status(v1::GetServerInfoResponse& response)> info;

  // window_bytes: how far a call may be ahead of its handler; 0 is gRPC's own choice.
  explicit FakeServer(const std::string& listen = "127.0.0.1:0", int window_bytes = 0,
                      const std::shared_ptr<grpc::ServerCredentials>& credentials =
                          grpc::InsecureServerCredentials()) {
    // Up to the end of the process: gRPC's shutdown may wait 10 s for the poller of a full socket.
    grpc_init();
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(listen, credentials, &port_);
    builder.SetMaxReceiveMessageSize(-1);
    if (window_bytes > 0) {
      builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, window_bytes);
      builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // which would make it smaller
    }
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  grpc::Server& server() { return *server_; }

 private:
  grpc::Status ComputeNorm(grpc::ServerContext*, NormStream* stream,
                           v1::ComputeNormResponse* response) override {
    return compute_norm(*stream, *response);
  }
  grpc::Status ClipGradNorm(grpc::ServerContext*, ClipStream* stream) override {
    return clip(*stream);
  }
  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    return info(*response);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_CLIENT_GRADCLIP_FAKE_SERVER_H_
