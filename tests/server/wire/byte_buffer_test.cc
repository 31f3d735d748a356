#include "server/wire/byte_buffer.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

TEST(ReceivedMessage, HoldsTheSlicesInOrder) {
  const std::vector<grpc::Slice> slices = {grpc::Slice(std::string("ab")), grpc::Slice(),
                                           grpc::Slice(std::string(100, 'c'))};
  grpc::ByteBuffer buffer(slices.data(), slices.size());
  const ReceivedMessage message(buffer);
  EXPECT_EQ(message.size(), 102u);
  EXPECT_EQ(message.Flatten(), "ab" + std::string(100, 'c'));
  size_t bytes = 0;
  for (const auto& piece : message.pieces()) bytes += piece.size();
  EXPECT_EQ(bytes, 102u);
  EXPECT_FALSE(buffer.Valid());
}

TEST(ReceivedMessage, IsEmptyForAnInvalidBuffer) {
  grpc::ByteBuffer buffer;
  EXPECT_EQ(ReceivedMessage(buffer).size(), 0u);
}

TEST(DataMessage, IsAResponseOfTheBytesWhereTheyLieAndHoldsTheirOwner) {
  auto owner = std::make_shared<std::string>(5000, 'x');
  {
    grpc::ByteBuffer message = DataMessage(std::as_bytes(std::span(*owner)), owner);
    EXPECT_EQ(owner.use_count(), 2);
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(message.Dump(&slices).ok());
    EXPECT_EQ(static_cast<const void*>(slices.back().begin()), owner->data());
    v1::ClipGradNormResponse response;
    ASSERT_TRUE(response.ParseFromString(ReceivedMessage(message).Flatten()));
    EXPECT_EQ(response.data(), *owner);
  }
  EXPECT_EQ(owner.use_count(), 1);
}

TEST(Serialize, GivesTheMessageBack) {
  v1::ClipGradNormResponse response;
  response.mutable_result()->set_coefficient(0.25);
  grpc::ByteBuffer buffer = Serialize(response);
  v1::ClipGradNormResponse parsed;
  ASSERT_TRUE(parsed.ParseFromString(ReceivedMessage(buffer).Flatten()));
  EXPECT_EQ(parsed.result().coefficient(), 0.25);
}

TEST(Serialize, GivesAValidBufferForAnEmptyMessage) {
  EXPECT_TRUE(Serialize(v1::ClipGradNormResponse()).Valid());
}

}  // namespace
}  // namespace gradclip
