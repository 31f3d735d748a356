// The contract's service: makes a call object per RPC. Thread-safe.
#ifndef GRADCLIP_SERVER_RPC_SERVICE_H_
#define GRADCLIP_SERVER_RPC_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <utility>

#include "gradclip/v1/gradclip.grpc.pb.h"
#include "server/rpc/environment.h"

namespace gradclip {

// The streaming RPCs take raw ByteBuffers: generated classes would copy every payload.
using ServiceBase = v1::GradClip::WithRawCallbackMethod_ComputeNorm<
    v1::GradClip::WithRawCallbackMethod_ClipGradNorm<v1::GradClip::Service>>;

class Service final : public ServiceBase {
 public:
  // info: what GetServerInfo answers.
  Service(Environment& environment, v1::GetServerInfoResponse info);

  grpc::ServerReadReactor<grpc::ByteBuffer>* ComputeNorm(grpc::CallbackServerContext* context,
                                                         grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ClipGradNorm(
      grpc::CallbackServerContext* context) override;

 private:
  class GetServerInfoCall;

  // Served as a stream: see ShortCall.
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* GetServerInfo(
      grpc::CallbackServerContext* context);

  Environment& environment_;
  const v1::GetServerInfoResponse info_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_SERVICE_H_
