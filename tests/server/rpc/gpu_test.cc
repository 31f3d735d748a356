// A server with a GPU, the emulated one, as callers and operators see it.
#include <gmock/gmock.h>

#include <chrono>
#include <string>
#include <thread>

#include "emulated_cuda.h"
#include "tests/server/net/http_get.h"
#include "tests/server/observe/exposition.h"
#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

class GpuServer : public ServerTest {
 protected:
  GpuServer() { options_.metrics_listen = "127.0.0.1:0"; }
  ~GpuServer() override {
    server_.reset();
    emulated_cuda::Reset();
  }

  Reply Clip34() {
    v1::ClipGradNormRequest start = ClipStart(1, 2);
    start.mutable_start()->set_reply(v1::REPLY_COEFFICIENT);
    return Clip({start, Data(Bytes<float>({3, 4}))});
  }

  v1::GetServerInfoResponse Info() {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
    return info;
  }

  // Once so many calls have been counted.
  Exposition ScrapeAfter(double calls) {
    while (true) {
      Exposition all = ReadExposition(HttpGet(server_->metrics_address(), "/metrics"));
      if (!(all.Sum("gradclip_calls_total") < calls) || HasFailure()) return all;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
};

TEST_F(GpuServer, UsesItAndSaysSo) {
  Serve();
  const Reply reply = Clip34();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.norm().total_norm(), 5);
  EXPECT_EQ(reply.result.norm().backend(), "cuda/0");
  const v1::GetServerInfoResponse info = Info();
  EXPECT_EQ(info.backends(0).name(), "cuda/0");
  EXPECT_TRUE(info.backends(0).usable());
  EXPECT_THAT(info.backends(0).detail(), HasSubstr("Emulated GPU"));
  EXPECT_THAT(info.backends(1).name(), HasSubstr("cpu/"));
  const Exposition all = ScrapeAfter(2);
  EXPECT_EQ(all.Value("gradclip_calls_total",
                      {{"rpc", "ClipGradNorm"}, {"code", "OK"}, {"backend", "cuda/0"}}),
            1);
  EXPECT_EQ(all.Value("gradclip_device_up", {{"device", "cuda/0"}}), 1);
  EXPECT_GT(all.Value("gradclip_device_memory_budget_bytes", {{"device", "cuda/0"}}), 0);
  EXPECT_EQ(all.Value("gradclip_device_memory_used_bytes", {{"device", "cuda/0"}}), 0);
  EXPECT_EQ(all.Value("gradclip_device_calls", {{"device", "cuda/0"}}), 0);
  EXPECT_EQ(all.Value("gradclip_device_fallbacks_total"), 0);
}

TEST_F(GpuServer, GoesOnWithoutOneThatFails) {
  Serve();
  emulated_cuda::FailCall("cudaEventQuery", 1, cudaErrorLaunchFailure, /*sticky=*/true);
  for (int call = 0; call < 2; ++call) {
    const Reply reply = Clip34();
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.result.norm().total_norm(), 5);
    EXPECT_THAT(reply.result.norm().backend(), HasSubstr("cpu/"));
  }
  const v1::GetServerInfoResponse info = Info();
  EXPECT_THAT(info.backends(0).name(), HasSubstr("cpu/"));
  bool listed = false;
  for (const v1::Backend& backend : info.backends()) {
    if (backend.name() != "cuda/0") continue;
    listed = true;
    EXPECT_FALSE(backend.usable());
    EXPECT_THAT(backend.detail(), HasSubstr("cudaErrorLaunchFailure"));
  }
  EXPECT_TRUE(listed);
  const Exposition all = ScrapeAfter(3);
  EXPECT_EQ(all.Value("gradclip_device_up", {{"device", "cuda/0"}}), 0);
  EXPECT_EQ(all.Value("gradclip_device_fallbacks_total"), 2);
}

TEST_F(GpuServer, EndsTheCallsOfOneThatFailsWhereItIsTold) {
  options_.on_gpu_error = OnGpuError::kFail;
  Serve();
  emulated_cuda::FailCall("cudaEventQuery", 1, cudaErrorLaunchFailure, /*sticky=*/true);
  for (int call = 0; call < 2; ++call) {
    const Reply reply = Clip34();
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_THAT(reply.status.error_message(), HasSubstr("cuda/0"));
  }
}

TEST_F(GpuServer, DoesNotUseItWhereTheCpuIsAskedFor) {
  options_.backend = "cpu";
  Serve();
  EXPECT_THAT(Clip34().result.norm().backend(), HasSubstr("cpu/"));
  EXPECT_THAT(Info().backends(0).name(), HasSubstr("cpu/"));
  EXPECT_FALSE(ScrapeAfter(2).families.contains("gradclip_device_up"));
}

}  // namespace
}  // namespace gradclip
