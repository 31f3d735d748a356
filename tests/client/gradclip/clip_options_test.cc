#include "client/gradclip/clip_options.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

TEST(ClipOptions, NeedALimit) {
  ClipOptions options;
  EXPECT_EQ(CheckOptions(options, {}).code(), absl::StatusCode::kInvalidArgument);
  options.max_norm = std::nan("");
  EXPECT_FALSE(CheckOptions(options, {}).ok());
  for (const double limit : {0.0, 1.0, std::numeric_limits<double>::infinity()}) {
    options.max_norm = limit;
    EXPECT_TRUE(CheckOptions(options, {}).ok()) << limit;
  }
}

TEST(ClipOptions, KeepTheReplyThatWasAskedFor) {
  ClipOptions options;
  for (const ReplyMode mode :
       {ReplyMode::kCoefficient, ReplyMode::kGradient, ReplyMode::kGradientIfChanged}) {
    options.reply = mode;
    EXPECT_EQ(WithReplyChosen(options, ReplyMode::kGradient).reply, mode);
  }
}

TEST(ClipOptions, GetAReplyThatGoesWithAKnownNorm) {
  ClipOptions options;
  EXPECT_EQ(WithReplyChosen(options, ReplyMode::kCoefficient).reply, ReplyMode::kCoefficient);
  EXPECT_EQ(WithReplyChosen(options, ReplyMode::kGradient).reply, ReplyMode::kGradient);
  options.total_norm = 3;
  EXPECT_EQ(WithReplyChosen(options, ReplyMode::kCoefficient).reply, ReplyMode::kGradientIfChanged);
  EXPECT_EQ(WithReplyChosen(options, ReplyMode::kGradient).reply, ReplyMode::kGradient);
}

}  // namespace
}  // namespace gradclip
