#include "server/rpc/health.h"

#include <grpcpp/impl/codegen/server_callback_handlers.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "server/rpc/caller.h"
#include "server/rpc/short_call.h"

namespace gradclip {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

bool IsHere(const std::string& service) {
  return service.empty() || service == "gradclip.v1.GradClip";
}

absl::Status TooMany(uint64_t most, absl::string_view what) {
  return absl::ResourceExhaustedError(
      absl::StrCat("this host has ", most, " health ", what,
                   ", as many as one may have, or all hosts together have too many; try again"));
}

}  // namespace

// What Check and Watch do alike: one request, once there is a place for it.
class HealthService::Exchange : public ShortCall {
 public:
  Exchange(HealthService& health, grpc::CallbackServerContext* context)
      : ShortCall(health.environment_, context), health_(health), host_(HostOf(*context)) {}

 protected:
  absl::Status Enter() override {
    if (!health_.open_) {
      if (absl::Status caller = CallerOf(*context_, environment_).status(); !caller.ok()) {
        return caller;
      }
    }
    absl::StatusOr<CallLimits::Place> place = health_.receiving_.Enter(host_);
    if (!place.ok()) return TooMany(kMaxReceivingPerHost, "checks under way");
    place_ = *std::move(place);
    return absl::OkStatus();
  }

  void Start() override { ReadRequest(); }

  void Take(const std::string& serialised) override {
    place_ = CallLimits::Place();
    HealthCheckRequest request;
    if (!request.ParseFromString(serialised)) {
      return End(absl::InvalidArgumentError("not a valid grpc.health.v1.HealthCheckRequest"));
    }
    TakeService(request.service());
  }

  void OnEnded(const absl::Status& /*status*/) override { place_ = CallLimits::Place(); }

  virtual void TakeService(const std::string& service) = 0;

  HealthService& health_;
  const std::string host_;
  CallLimits::Place place_;
};

class HealthService::Check final : public Exchange {
 public:
  using Exchange::Exchange;

 private:
  void TakeService(const std::string& service) override {
    if (!IsHere(service))
      return End(absl::NotFoundError(
          "no such service here: gradclip.v1.GradClip is, and \"\" for the server"));
    HealthCheckResponse response;
    response.set_status(health_.serving() ? HealthCheckResponse::SERVING
                                          : HealthCheckResponse::NOT_SERVING);
    AnswerAndEnd(response);
  }
};

class HealthService::Watch final : public Exchange {
 public:
  using Exchange::Exchange;

  // Tells the status, where it is not the last one told. From any thread.
  void Tell() {
    HealthCheckResponse response;
    {
      const std::lock_guard lock(mutex_);
      response.set_status(!here_              ? HealthCheckResponse::SERVICE_UNKNOWN
                          : health_.serving() ? HealthCheckResponse::SERVING
                                              : HealthCheckResponse::NOT_SERVING);
      if (response.status() == told_) return;
      // Where another answer is on its way, OnWritten() comes back here.
      if (Answer(response)) told_ = response.status();
    }
  }

 private:
  void TakeService(const std::string& service) override {
    absl::StatusOr<CallLimits::Place> place = health_.watching_.Enter(host_);
    if (!place.ok()) return End(TooMany(kMaxWatchingPerHost, "watches"));
    place_ = *std::move(place);
    here_ = IsHere(service);
    const auto self = std::static_pointer_cast<Watch>(shared_from_this());
    health_.AddWatch(self);
    Tell();
  }

  void OnWritten() override { Tell(); }
  void OnEnded(const absl::Status& status) override {
    Exchange::OnEnded(status);
    health_.RemoveWatch(std::static_pointer_cast<Watch>(shared_from_this()));
  }

  bool here_ = false;
  std::mutex mutex_;
  HealthCheckResponse::ServingStatus told_ = HealthCheckResponse::UNKNOWN;  // guarded by mutex_
};

HealthService::HealthService(Environment& environment, bool open)
    : environment_(environment), open_(open) {
  using Handler = grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, grpc::ByteBuffer>;
  const auto add = [this](int index, const char* method, auto make) {
    AddMethod(new grpc::internal::RpcServiceMethod(
        method, grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
    MarkMethodRawCallback(index, new Handler(make));
  };
  add(0, "/grpc.health.v1.Health/Check",
      [this](grpc::CallbackServerContext* context) { return Make<Check>(context); });
  add(1, "/grpc.health.v1.Health/Watch",
      [this](grpc::CallbackServerContext* context) { return Make<Watch>(context); });
}

template <typename Call>
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* HealthService::Make(
    grpc::CallbackServerContext* context) {
  const auto call = std::make_shared<Call>(*this, context);
  call->Begin();
  return call.get();
}

void HealthService::StopServing() {
  std::vector<std::shared_ptr<Watch>> watches;
  {
    const std::lock_guard lock(mutex_);
    serving_ = false;
    watches.assign(watches_.begin(), watches_.end());
  }
  for (const auto& watch : watches) watch->Tell();
}

bool HealthService::serving() const {
  const std::lock_guard lock(mutex_);
  return serving_;
}

void HealthService::AddWatch(std::shared_ptr<Watch> watch) {
  const std::lock_guard lock(mutex_);
  watches_.insert(std::move(watch));
}

void HealthService::RemoveWatch(const std::shared_ptr<Watch>& watch) {
  const std::lock_guard lock(mutex_);
  watches_.erase(watch);
}

}  // namespace gradclip
