// One call of ComputeNorm. Threading as Call.
#ifndef GRADCLIP_SERVER_RPC_COMPUTE_NORM_CALL_H_
#define GRADCLIP_SERVER_RPC_COMPUTE_NORM_CALL_H_

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "server/rpc/call.h"

namespace gradclip {

class ComputeNormCall final : public grpc::ServerReadReactor<grpc::ByteBuffer>, public Call {
 public:
  ComputeNormCall(Environment& environment, grpc::CallbackServerContext* context,
                  grpc::ByteBuffer* response)
      : Call(environment, context, "ComputeNorm"), response_(response) {}

  using Call::Begin;

 private:
  void OnReadDone(bool ok) override { OnRead(ok); }
  void OnCancel() override { OnCancelled(); }
  void OnDone() override { OnEnded(); }

  void StartReading(grpc::ByteBuffer* into) override { StartRead(into); }
  void StartFinish(const grpc::Status& status) override { Finish(status); }

  void TakeRequest(const std::string& serialised, MemoryBudget::Reservation declarations) override {
    ParseAndTake<v1::ComputeNormRequest>(serialised, std::move(declarations));
  }

  void PassThrough(const Pieces& /*pieces*/) override {}  // ComputeNorm is never given a norm

  void Answer() override {
    v1::ComputeNormResponse response;
    *response.mutable_norm() = session_.result().norm();
    grpc::ByteBuffer message = Serialize(response);
    response_->Swap(&message);
    End(absl::OkStatus());
  }

  grpc::ByteBuffer* const response_;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_RPC_COMPUTE_NORM_CALL_H_
