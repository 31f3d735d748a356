// A real server on a free port in this process, and generated stubs to talk to it: what a client in
// any language would send.
#ifndef GRADCLIP_TESTS_SERVER_RPC_SERVER_FIXTURE_H_
#define GRADCLIP_TESTS_SERVER_RPC_SERVER_FIXTURE_H_

#include <fcntl.h>
#include <grpc/grpc.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "server/observe/log.h"
#include "server/options/options.h"
#include "server/rpc/server.h"

namespace gradclip {

template <typename Element>
std::string Bytes(const std::vector<Element>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()),
                     elements.size() * sizeof(Element));
}

class ServerTest : public testing::Test {
 protected:
  // gRPC's last shutdown may wait ten seconds for a poller of its own: let it come only at the end.
  static void SetUpTestSuite() { grpc_init(); }

  ServerTest() {
    options_.listen = {"127.0.0.1:0"};
    options_.memory_budget = uint64_t{1} << 30;
    options_.max_call_bytes = options_.memory_budget;
  }

  // Starts (again) with options_. `log` must outlive the server.
  void Serve() { Serve(log_); }
  void Serve(Log& log) {
    server_.reset();
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_, log);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = Connect();
  }

  // A stub with a connection of its own.
  std::unique_ptr<v1::GradClip::Stub> Connect(size_t address = 0) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(server_->addresses()[address],
                                         grpc::InsecureChannelCredentials(), arguments);
    return v1::GradClip::NewStub(channel_);
  }

  // A call's memory is free a moment after its caller has seen the end.
  void AwaitNothingReserved() {
    while (server_->reserved_bytes() > 0) std::this_thread::yield();
  }

  static v1::ClipGradNormRequest ClipStart(double max_norm, int64_t elements) {
    v1::ClipGradNormRequest request;
    v1::TensorSpec& tensor = *request.mutable_start()->add_tensors();
    tensor.set_name("w");
    tensor.set_dtype(v1::DTYPE_FLOAT32);
    tensor.add_shape(elements);
    request.mutable_start()->set_max_norm(max_norm);
    return request;
  }

  static v1::ClipGradNormRequest Data(std::string bytes) {
    v1::ClipGradNormRequest request;
    request.set_data(std::move(bytes));
    return request;
  }

  // What came back from one call.
  struct Reply {
    grpc::Status status;
    v1::ClipResult result;
    std::string gradient;
    size_t largest_message = 0;
  };

  using Stream = grpc::ClientReaderWriter<v1::ClipGradNormRequest, v1::ClipGradNormResponse>;

  // Reads to the end of the call.
  static Reply Drain(Stream& stream) {
    Reply reply;
    v1::ClipGradNormResponse response;
    while (stream.Read(&response)) {
      if (response.has_result()) reply.result = response.result();
      reply.gradient += response.data();
      reply.largest_message = std::max(reply.largest_message, response.data().size());
    }
    reply.status = stream.Finish();
    return reply;
  }

  // A whole call: all requests, half-close, all replies.
  Reply Clip(const std::vector<v1::ClipGradNormRequest>& requests) {
    grpc::ClientContext context;
    const auto stream = stub_->ClipGradNorm(&context);
    for (const auto& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    return Drain(*stream);
  }

  // A whole call of ComputeNorm. `norm` is set where the status is OK.
  grpc::Status Compute(const std::vector<v1::ComputeNormRequest>& requests, v1::NormResult& norm) {
    grpc::ClientContext context;
    v1::ComputeNormResponse response;
    const auto stream = stub_->ComputeNorm(&context, &response);
    for (const auto& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    grpc::Status status = stream->Finish();
    norm = response.norm();
    return status;
  }

  Options options_;
  const int null_ = open("/dev/null", O_WRONLY);
  Log log_{LogFormat::kText, LogLevel::kInfo, null_};
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GradClip::Stub> stub_;
};

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_RPC_SERVER_FIXTURE_H_
