#include "server/rpc/service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/caller.h"
#include "server/rpc/clip_grad_norm_call.h"
#include "server/rpc/compute_norm_call.h"
#include "server/rpc/short_call.h"

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

// Nothing of the request is read: there is nothing in it.
class Service::GetServerInfoCall final : public ShortCall {
 public:
  GetServerInfoCall(Environment& environment, grpc::CallbackServerContext* context,
                    v1::GetServerInfoResponse info)
      : ShortCall(environment, context), info_(std::move(info)) {
    record_.call_id = environment.next_call_id.fetch_add(1, std::memory_order_relaxed);
    record_.peer = peer_;
    record_.rpc = "GetServerInfo";
    record_.trace = TraceOf(*context);
  }

 private:
  // Also fills in what this caller may do.
  absl::Status Enter() override {
    absl::StatusOr<Caller> caller = CallerOf(*context_, environment_);
    if (!caller.ok()) return caller.status();
    record_.caller = caller->identity;
    if (environment_.watchdog.closed()) return Draining();
    absl::StatusOr<Entry> entry = gradclip::Enter(*caller, environment_);
    if (!entry.ok()) return entry.status();
    place_ = std::move(entry->place);
    info_.set_instance(environment_.groups.instance());
    if (const Permission* const may = entry->permission.get(); may != nullptr) {
      info_.set_max_call_bytes(std::min(info_.max_call_bytes(), may->max_gradient_bytes));
      if (!may->shared_memory) info_.clear_memory_socket();
    }
    return absl::OkStatus();
  }

  void Start() override { AnswerAndEnd(info_); }

  void OnEnded(const absl::Status& status) override {
    place_ = CallLimits::Place();
    record_.status = status;
    record_.milliseconds =
        absl::ToDoubleMilliseconds(absl::FromChrono(std::chrono::steady_clock::now() - begin_));
    environment_.Ended(record_);
  }

  v1::GetServerInfoResponse info_;
  CallRecord record_;
  CallLimits::Place place_;
};

Service::Service(Environment& environment, v1::GetServerInfoResponse info,
                 std::function<void(v1::GetServerInfoResponse&)> add_backends)
    : environment_(environment), info_(std::move(info)), add_backends_(std::move(add_backends)) {
  constexpr int kGetServerInfo = 2;  // in the contract's order
  MarkMethodStreamed(kGetServerInfo, nullptr);
  MarkMethodRawCallback(
      kGetServerInfo,
      new grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
          [this](grpc::CallbackServerContext* context) { return MakeGetServerInfo(context); }));
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Service::MakeGetServerInfo(
    grpc::CallbackServerContext* context) {
  v1::GetServerInfoResponse info = info_;
  add_backends_(info);
  const auto call = std::make_shared<GetServerInfoCall>(environment_, context, std::move(info));
  call->Begin();
  return call.get();
}

namespace {

// Ends at once. (gRPC's own answer would not be counted as a call of the connection.)
class UnknownMethod final : public ShortCall {
 public:
  UnknownMethod(Environment& environment, grpc::GenericCallbackServerContext* context)
      : ShortCall(environment, context), method_(context->method()) {}

 private:
  absl::Status Enter() override {
    return absl::UnimplementedError(absl::StrCat(
        "there is no method ", absl::Utf8SafeCEscape(method_.substr(0, 256)), " here"));
  }
  void Start() override {}

  // Only counted: a line for each would be a way to fill the log.
  void OnEnded(const absl::Status& status) override {
    if (environment_.metrics == nullptr) return;
    CallRecord record;
    record.milliseconds =
        absl::ToDoubleMilliseconds(absl::FromChrono(std::chrono::steady_clock::now() - begin_));
    record.status = status;
    environment_.metrics->Count(record);
  }

  const std::string method_;
};

}  // namespace

grpc::ServerGenericBidiReactor* UnknownMethods::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const auto call = std::make_shared<UnknownMethod>(environment_, context);
  call->Begin();
  return call.get();
}

}  // namespace gradclip
