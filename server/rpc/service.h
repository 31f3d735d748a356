// The contract's service, and what answers in its absence: a call object per RPC. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_SERVICE_H_
#define GRADCLIP_SERVER_RPC_SERVICE_H_

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <utility>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "server/rpc/environment.h"

namespace gradclip {

// The streaming RPCs take raw ByteBuffers: generated classes would copy every payload.
using ServiceBase = v1::GradClip::WithRawCallbackMethod_ComputeNorm<
    v1::GradClip::WithRawCallbackMethod_ClipGradNorm<v1::GradClip::Service>>;

// Answers calls of methods that are not here.
class UnknownMethods final : public grpc::CallbackGenericService {
 public:
  explicit UnknownMethods(Environment& environment) : environment_(environment) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  Environment& environment_;
};

class Service final : public ServiceBase {
 public:
  // What GetServerInfo answers: `info`, to which add_backends adds those of the moment.
  Service(Environment& environment, v1::GetServerInfoResponse info,
          std::function<void(v1::GetServerInfoResponse&)> add_backends);

  grpc::ServerReadReactor<grpc::ByteBuffer>* ComputeNorm(grpc::CallbackServerContext* context,
                                                         grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ClipGradNorm(
      grpc::CallbackServerContext* context) override;

 private:
  class GetServerInfoCall;

  // Served as a stream: see ShortCall.
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* MakeGetServerInfo(
      grpc::CallbackServerContext* context);

  Environment& environment_;
  const v1::GetServerInfoResponse info_;
  const std::function<void(v1::GetServerInfoResponse&)> add_backends_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_SERVICE_H_
