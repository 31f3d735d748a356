#include "client/gradclip/reply.h"

#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

grpc::ByteBuffer BufferOf(const std::string& bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += slice_bytes) {
    slices.emplace_back(bytes.substr(at, slice_bytes));
  }
  if (slices.empty()) slices.emplace_back();
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// A gradient of 12 bytes, and the reply to it.
class ClipReplyTest : public ::testing::Test {
 protected:
  void Ask(ReplyMode mode) { reply_.emplace(tensors_, 12, mode); }

  absl::Status TakeBytes(const std::string& bytes, size_t slice_bytes = 100) {
    grpc::ByteBuffer message = BufferOf(bytes, slice_bytes);
    return reply_->Take(message, sent_bytes_);
  }
  absl::Status TakeResult(bool gradient_follows) {
    v1::ClipGradNormResponse response;
    response.mutable_result()->set_coefficient(0.5);
    response.mutable_result()->mutable_norm()->set_total_norm(7);
    response.mutable_result()->set_gradient_follows(gradient_follows);
    return TakeBytes(response.SerializeAsString());
  }
  absl::Status TakeData(const std::string& data, size_t slice_bytes = 100) {
    v1::ClipGradNormResponse response;
    response.set_data(data);
    return TakeBytes(response.SerializeAsString(), slice_bytes);
  }
  std::string memory() const { return first_ + second_; }

  std::string first_ = "abcd";
  std::string second_ = "efghijkl";
  const std::vector<Tensor> tensors_ = {{"first", DType::kBFloat16, {2}, first_.data()},
                                        {"empty", DType::kBFloat16, {0}, nullptr},
                                        {"second", DType::kFloat32, {2}, second_.data()}};
  uint64_t sent_bytes_ = 12;
  std::optional<ClipReply> reply_;
};

TEST_F(ClipReplyTest, WritesDataThroughTheTensorsWhereverItIsCut) {
  const std::string clipped = "ABCDEFGHIJKL";
  for (size_t slice_bytes : {1, 2, 3, 5, 100}) {
    for (size_t message_bytes : {1, 3, 5, 12}) {
      first_.assign("abcd");
      second_.assign("efghijkl");
      Ask(ReplyMode::kGradient);
      ASSERT_TRUE(TakeResult(true).ok());
      for (size_t at = 0; at < clipped.size(); at += message_bytes) {
        const absl::Status taken = TakeData(clipped.substr(at, message_bytes), slice_bytes);
        ASSERT_TRUE(taken.ok()) << taken;
      }
      EXPECT_TRUE(reply_->CheckComplete().ok());
      EXPECT_EQ(memory(), clipped);
      EXPECT_EQ(reply_->written_bytes(), 12u);
    }
  }
  EXPECT_EQ(reply_->result().norm().total_norm(), 7);
}

TEST_F(ClipReplyTest, SkipsFieldsOfLaterContracts) {
  Ask(ReplyMode::kGradient);
  ASSERT_TRUE(TakeResult(true).ok());
  EXPECT_TRUE(TakeBytes("\x98\x06\x05\x12\x02XY\x9a\x06\x01z").ok());
  EXPECT_EQ(memory(), "XYcdefghijkl");
}

TEST_F(ClipReplyTest, RefusesMoreBytesThanTheGradientHasAndWritesNoneOfThem) {
  Ask(ReplyMode::kGradient);
  ASSERT_TRUE(TakeResult(true).ok());
  ASSERT_TRUE(TakeData("ABCDEFGHIJ").ok());
  const absl::Status taken = TakeData("KLM");
  EXPECT_EQ(taken.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(taken.message(), HasSubstr("sent 13 bytes back where at most 12"));
  EXPECT_EQ(memory(), "ABCDEFGHIJkl");
}

TEST_F(ClipReplyTest, RefusesBytesAheadOfWhatWasSent) {
  Ask(ReplyMode::kGradient);
  sent_bytes_ = 4;
  ASSERT_TRUE(TakeResult(true).ok());
  EXPECT_TRUE(TakeData("ABCD").ok());
  EXPECT_EQ(TakeData("E").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(memory(), "ABCDefghijkl");
}

TEST_F(ClipReplyTest, MissesBytesThatDidNotCome) {
  Ask(ReplyMode::kGradient);
  EXPECT_THAT(reply_->CheckComplete().message(), HasSubstr("without a result"));
  ASSERT_TRUE(TakeResult(true).ok());
  ASSERT_TRUE(TakeData("ABCD").ok());
  EXPECT_EQ(reply_->CheckComplete().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(reply_->CheckComplete().message(), HasSubstr("sent 4 of the gradient's 12 bytes"));
}

TEST_F(ClipReplyTest, RefusesDataBeforeTheResult) {
  Ask(ReplyMode::kGradient);
  EXPECT_EQ(TakeData("ABCD").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(memory(), "abcdefghijkl");
}

TEST_F(ClipReplyTest, RefusesASecondResult) {
  Ask(ReplyMode::kGradient);
  ASSERT_TRUE(TakeResult(true).ok());
  EXPECT_EQ(TakeResult(true).code(), absl::StatusCode::kInternal);
}

TEST_F(ClipReplyTest, RefusesDataThatWasNotAnnounced) {
  Ask(ReplyMode::kGradientIfChanged);
  ASSERT_TRUE(TakeResult(false).ok());
  EXPECT_TRUE(reply_->CheckComplete().ok());
  EXPECT_EQ(TakeData("ABCD").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(memory(), "abcdefghijkl");
}

TEST_F(ClipReplyTest, RefusesAnAnnouncementThatIsNotWhatWasAskedFor) {
  Ask(ReplyMode::kCoefficient);
  EXPECT_EQ(TakeResult(true).code(), absl::StatusCode::kInternal);
  Ask(ReplyMode::kGradient);
  EXPECT_EQ(TakeResult(false).code(), absl::StatusCode::kInternal);
}

TEST_F(ClipReplyTest, RefusesWhatIsNoResponse) {
  const std::string cases[] = {"\x12",
                               "\x12\x05"
                               "abc",
                               "\x0a\x05"
                               "abc",
                               "\x0a\x02\xff\xff",
                               "\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                               "\x07"};
  for (const std::string& bytes : cases) {
    for (bool after_result : {false, true}) {
      Ask(ReplyMode::kGradient);
      if (after_result) {
        ASSERT_TRUE(TakeResult(true).ok());
      }
      EXPECT_EQ(TakeBytes(bytes).code(), absl::StatusCode::kInternal);
      EXPECT_EQ(memory(), "abcdefghijkl");
    }
  }
}

}  // namespace
}  // namespace gradclip
