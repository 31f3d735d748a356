// Messages that are measured while the next one is read, and segments that are scaled while one is
// written: on several calls at once, whole, refused and cancelled in the middle.
#include <gmock/gmock.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/server/rpc/server_fixture.h"

namespace gradclip {
namespace {

using testing::HasSubstr;

constexpr int64_t kElements = 1 << 20;             // 4 MiB
constexpr size_t kMessageBytes = size_t{1} << 18;  // 16 of them

class LargeMessages : public ServerTest {
 protected:
  LargeMessages() { Serve(); }

  // kElements of `value`, clipped to half their norm, in `count` messages; what comes back.
  Reply ClipToHalf(float value, size_t count = 16) {
    const std::string message = Bytes(std::vector<float>(kMessageBytes / 4, value));
    std::vector<v1::ClipGradNormRequest> requests = {ClipStart(value * 512, kElements)};
    requests.resize(1 + count, Data(message));
    return Clip(requests);
  }

  static void ExpectHalf(const Reply& reply, float value) {
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.result.norm().total_norm(), value * 1024);
    const auto factor = static_cast<float>(reply.result.coefficient());
    EXPECT_NEAR(factor, 0.5, 1e-6);
    EXPECT_TRUE(reply.gradient == Bytes(std::vector<float>(kElements, value * factor)));
  }
};

TEST_F(LargeMessages, OfCallsAtOnceComeBackWholeAmongCancelledOnes) {
  std::vector<std::thread> callers;
  for (int caller = 1; caller <= 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 4; ++round) {
        ExpectHalf(ClipToHalf(static_cast<float>(caller)), static_cast<float>(caller));
        grpc::ClientContext context;
        const auto stream = stub_->ClipGradNorm(&context);
        const v1::ClipGradNormRequest message = Data(std::string(kMessageBytes, '\1'));
        bool open = stream->Write(ClipStart(1, kElements));
        for (int sent = 0; open && sent < 4 * round; ++sent) open = stream->Write(message);
        context.TryCancel();
        EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  AwaitNothingReserved();
}

TEST_F(LargeMessages, BeyondTheDeclaredSizeAreRefusedAndLeaveNothing) {
  const Reply reply = ClipToHalf(1, 17);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(
      reply.status.error_message(),
      HasSubstr(
          "262144 bytes of data came after 4194304; the 1 tensors up to \"w\" declare 4194304"));
  AwaitNothingReserved();
  ExpectHalf(ClipToHalf(3), 3);
}

TEST_F(LargeMessages, ThatAreTooFewAreRefusedAndLeaveNothing) {
  const Reply reply = ClipToHalf(1, 15);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("after 3932160 of the 4194304"));
  AwaitNothingReserved();
}

TEST_F(LargeMessages, FollowedByNothingEndTheCallAfterTheIdleTimeout) {
  options_.idle_timeout = absl::Seconds(1);
  Serve();
  grpc::ClientContext context;
  const auto stream = stub_->ClipGradNorm(&context);
  stream->Write(ClipStart(1, kElements));
  stream->Write(Data(std::string(kMessageBytes, '\1')));
  const Reply reply = Drain(*stream);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("--idle-timeout), after 262144 bytes"));
  AwaitNothingReserved();
}

}  // namespace
}  // namespace gradclip
