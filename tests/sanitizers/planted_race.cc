// A server with a data race on purpose: its callback adds to a counter that nothing guards. Built
// only under a sanitizer, where ThreadSanitizer must report the race: gRPC itself comes without
// instrumentation, its modules are ignored, and this shows that our own races are seen
// nevertheless.
//
//   planted_race            adds without a lock: must be reported
//   planted_race guarded    adds under a lock: must not be
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "gradclip/v1/gradclip.grpc.pb.h"

namespace gradclip {
namespace {

constexpr int kCallers = 4;
constexpr int kCallsEach = 250;

class CountingService final : public v1::GradClip::CallbackService {
 public:
  explicit CountingService(bool guarded) : guarded_(guarded) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* /*request*/,
                                          v1::GetServerInfoResponse* /*response*/) override {
    CountCall();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  uint64_t calls() const { return calls_; }

 private:
  // Out of line, so that the report names it.
  __attribute__((noinline)) void CountCall() {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    if (guarded_) {
      lock.lock();
    }
    ++calls_;
  }

  const bool guarded_;
  std::mutex mutex_;
  uint64_t calls_ = 0;
};

// Returns whether every call was answered.
bool CallManyTimes(const std::string& address) {
  grpc::ChannelArguments arguments;
  // A connection of its own, or the callers would share one and its order.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::unique_ptr<v1::GradClip::Stub> stub = v1::GradClip::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  for (int call = 0; call < kCallsEach; ++call) {
    grpc::ClientContext context;
    v1::GetServerInfoResponse response;
    const grpc::Status status = stub->GetServerInfo(&context, {}, &response);
    if (!status.ok()) {
      std::fprintf(stderr, "call %d: %s\n", call, status.error_message().c_str());
      return false;
    }
  }
  return true;
}

int Run(bool guarded) {
  CountingService service(guarded);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::fprintf(stderr, "the server did not start\n");
    return 1;
  }
  const std::string address = "127.0.0.1:" + std::to_string(port);

  std::vector<char> answered(kCallers, 0);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] { answered[caller] = CallManyTimes(address) ? 1 : 0; });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  server->Shutdown();
  server->Wait();
  for (const char all : answered) {
    if (all == 0) {
      return 1;
    }
  }
  std::printf("counted %llu of %d calls\n", static_cast<unsigned long long>(service.calls()),
              kCallers * kCallsEach);
  return 0;
}

}  // namespace
}  // namespace gradclip

int main(int argc, char** argv) {
  return gradclip::Run(argc == 2 && std::string_view(argv[1]) == "guarded");
}
