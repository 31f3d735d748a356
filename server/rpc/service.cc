#include "server/rpc/service.h"

#include <memory>
#include <utility>

#include "server/rpc/caller.h"
#include "server/rpc/clip_grad_norm_call.h"
#include "server/rpc/compute_norm_call.h"

namespace gradclip {

grpc::ServerReadReactor<grpc::ByteBuffer>* Service::ComputeNorm(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  const auto call = std::make_shared<ComputeNormCall>(environment_, context, response);
  call->Begin();
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Service::ClipGradNorm(
    grpc::CallbackServerContext* context) {
  const auto call = std::make_shared<ClipGradNormCall>(environment_, context);
  call->Begin();
  return call.get();
}

grpc::ServerUnaryReactor* Service::GetServerInfo(grpc::CallbackServerContext* context,
                                                 const v1::GetServerInfoRequest* /*request*/,
                                                 v1::GetServerInfoResponse* response) {
  const SteadyTime begin = std::chrono::steady_clock::now();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  CallRecord record;
  absl::StatusOr<std::string> caller = CallerOf(*context, environment_.callers);
  if (!caller.ok()) {
    record.status = caller.status();
  } else if (environment_.watchdog.closed()) {
    record.status = Draining();
  } else {
    *response = info_;
  }
  record.caller = std::move(caller).value_or("");
  record.call_id = environment_.next_call_id.fetch_add(1, std::memory_order_relaxed);
  record.peer = context->peer();
  record.rpc = "GetServerInfo";
  record.milliseconds =
      absl::ToDoubleMilliseconds(absl::FromChrono(std::chrono::steady_clock::now() - begin));
  environment_.log.Call(record);
  reactor->Finish(ToGrpcStatus(record.status));
  return reactor;
}

}  // namespace gradclip
