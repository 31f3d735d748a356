#include "server/wire/message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

std::span<const std::byte> AsBytes(std::string_view bytes) {
  return std::as_bytes(std::span(bytes));
}

std::string Join(const Pieces& pieces) {
  std::string joined;
  for (const auto& piece : pieces) {
    joined.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return joined;
}

std::string DataRequest(const std::string& data) {
  v1::ClipGradNormRequest request;
  request.set_data(data);
  return request.SerializeAsString();
}

TEST(StripDataHeader, LeavesThePayloadForEveryTwoCuts) {
  for (const std::string& payload : {std::string(), std::string("x"), std::string(300, 'y')}) {
    const std::string message = DataRequest(payload);
    for (size_t first = 0; first <= message.size(); ++first) {
      for (size_t second = first; second <= message.size(); second += 1 + second / 8) {
        Pieces pieces = {AsBytes(message).first(first),
                         {},
                         AsBytes(message).subspan(first, second - first),
                         AsBytes(message).subspan(second)};
        ASSERT_TRUE(StripDataHeader(pieces));
        ASSERT_EQ(Join(pieces), payload);
      }
    }
  }
}

TEST(StripDataHeader, LeavesEverythingElseToProtobuf) {
  v1::ClipGradNormRequest start;
  start.mutable_start()->set_max_norm(1);
  const std::string data = DataRequest("abc");
  for (const std::string& message :
       {std::string(), std::string("\x12"), std::string("\x12\x80"), start.SerializeAsString(),
        data + data, data + start.SerializeAsString(), data.substr(0, 4), data + "\x18\x01",
        std::string("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")}) {
    Pieces pieces = {AsBytes(message)};
    EXPECT_FALSE(StripDataHeader(pieces));
    EXPECT_EQ(Join(pieces), message);
  }
}

TEST(WriteDataHeader, WritesWhatProtobufWrites) {
  for (size_t size : {size_t{0}, size_t{1}, size_t{127}, size_t{128}, size_t{1} << 20}) {
    v1::ClipGradNormResponse response;
    response.set_data(std::string(size, 'z'));
    std::byte header[kMaxDataHeaderBytes];
    const size_t header_bytes = WriteDataHeader(size, header);
    const std::string message = response.SerializeAsString();
    ASSERT_EQ(header_bytes + size, message.size());
    EXPECT_EQ(std::string(reinterpret_cast<char*>(header), header_bytes),
              message.substr(0, header_bytes));
  }
}

v1::ClipGradNormRequest RequestWith(int tensors, int dimensions) {
  v1::ClipGradNormRequest request;
  for (int i = 0; i < tensors; ++i) {
    v1::TensorSpec& tensor = *request.mutable_start()->add_tensors();
    for (int j = 0; j < dimensions; ++j) tensor.add_shape(1 << j);
  }
  return request;
}

TEST(BoundParsedBytes, AcceptsWhatIsWithinTheLimits) {
  EXPECT_TRUE(BoundParsedBytes(RequestWith(10, 4).SerializeAsString(), {10, 4}).ok());
  EXPECT_TRUE(BoundParsedBytes("", {10, 4}).ok());
}

TEST(BoundParsedBytes, RefusesTooManyTensorsAndDimensions) {
  const absl::StatusOr<uint64_t> tensors =
      BoundParsedBytes(RequestWith(11, 4).SerializeAsString(), {10, 4});
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tensors.status().message(),
            "tensors: more than 10 are declared, which is the limit (--max-tensors)");
  const absl::StatusOr<uint64_t> dimensions =
      BoundParsedBytes(RequestWith(3, 5).SerializeAsString(), {10, 4});
  EXPECT_EQ(dimensions.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(dimensions.status().message(),
            "tensor #0: shape has more than 4 dimensions, which is the limit (--max-dimensions)");
}

TEST(BoundParsedBytes, CountsDimensionsThatAreNotPacked) {
  // start { tensors { shape: 1 shape: 1 shape: 1 } }, one varint field each.
  const std::string message("\x0a\x08\x0a\x06\x18\x01\x18\x01\x18\x01", 10);
  v1::ClipGradNormRequest request;
  ASSERT_TRUE(request.ParseFromString(message));
  ASSERT_EQ(request.start().tensors(0).shape_size(), 3);
  EXPECT_TRUE(BoundParsedBytes(message, {10, 3}).ok());
  EXPECT_FALSE(BoundParsedBytes(message, {10, 2}).ok());
}

TEST(BoundParsedBytes, CountsTensorsOfStartsThatProtobufMerges) {
  const std::string twice =
      RequestWith(6, 1).SerializeAsString() + RequestWith(6, 1).SerializeAsString();
  EXPECT_FALSE(BoundParsedBytes(twice, {10, 4}).ok());
}

TEST(BoundParsedBytes, IsAnUpperBoundOfWhatProtobufHolds) {
  v1::ClipGradNormRequest named = RequestWith(100, 8);
  for (auto& tensor : *named.mutable_start()->mutable_tensors()) {
    tensor.set_name(std::string(50, 'n'));
  }
  std::string unknown;
  for (int i = 0; i < 1000; ++i) unknown += "\xa0\x06\x01";  // field 100, varint
  std::string groups;
  for (int i = 0; i < 1000; ++i) groups += "\xa3\x06\xa4\x06";  // field 100, empty group
  // start { FIELD { 15: "" 15: "" ... } } for norm and group, and the same in tensors and in start.
  std::string empty_strings;
  for (int i = 0; i < 1000; ++i) empty_strings += std::string("\x7a\0", 2);
  const auto nested = [](char field, const std::string& content) {
    std::string message(1, static_cast<char>(field << 3 | 2));
    size_t length = content.size();
    for (; length >= 0x80; length >>= 7) message += static_cast<char>(length | 0x80);
    return message + static_cast<char>(length) + content;
  };
  std::vector<std::string> messages = {named.SerializeAsString(),
                                       RequestWith(1000, 0).SerializeAsString(),
                                       unknown,
                                       groups,
                                       nested(1, empty_strings),
                                       nested(3, empty_strings)};
  for (const char field : {1, 2, 3}) messages.push_back(nested(1, nested(field, empty_strings)));
  messages.push_back(nested(1, nested(3, nested(6, empty_strings))));  // group { timeout { ... } }
  for (const std::string& message : messages) {
    v1::ClipGradNormRequest request;
    ASSERT_TRUE(request.ParseFromString(message));
    const absl::StatusOr<uint64_t> bound = BoundParsedBytes(message, {1 << 20, 64});
    ASSERT_TRUE(bound.ok());
    EXPECT_GE(*bound + sizeof(request), request.SpaceUsedLong());
    EXPECT_LE(*bound, 200 * request.ByteSizeLong() + 1000);
  }
}

TEST(BoundParsedBytes, WeighsNamesByTheirLength) {
  v1::ClipGradNormRequest request = RequestWith(1, 1);
  request.mutable_start()->mutable_tensors(0)->set_name(std::string(1 << 20, 'n'));
  EXPECT_LE(*BoundParsedBytes(request.SerializeAsString(), {10, 4}), uint64_t{3} << 20);
}

// `count` ranges, as protobuf writes them and one by one.
std::string PackedRanges(int count) {
  v1::ClipGradNormRequest request;
  request.mutable_shared()->set_region(std::string(16, 'r'));
  for (int i = 0; i < count; ++i) {
    request.mutable_shared()->add_offset(8 * i);
    request.mutable_shared()->add_length(8);
  }
  return request.SerializeAsString();
}
std::string SingleRanges(int count) {
  std::string ranges;
  for (int i = 0; i < count; ++i) {
    ranges += "\x11" + std::string(8, '\0');      // offset
    ranges += "\x19\x08" + std::string(7, '\0');  // length
  }
  return "\x1a" + std::string(1, static_cast<char>(ranges.size())) + ranges;
}

TEST(BoundParsedBytes, CountsRangesPackedAndNot) {
  const DeclarationLimits limits = {.max_ranges = 5};
  ASSERT_TRUE(v1::ClipGradNormRequest().ParseFromString(SingleRanges(5)));
  for (const auto& ranges : {PackedRanges, SingleRanges}) {
    const absl::StatusOr<uint64_t> within = BoundParsedBytes(ranges(5), limits);
    ASSERT_TRUE(within.ok()) << within.status();
    EXPECT_GE(*within, 5 * 192u);
    const absl::StatusOr<uint64_t> over = BoundParsedBytes(ranges(6), limits);
    EXPECT_TRUE(absl::IsResourceExhausted(over.status())) << over.status();
    EXPECT_THAT(std::string(over.status().message()), testing::HasSubstr("more than 5 ranges"));
    EXPECT_THAT(std::string(over.status().message()), testing::HasSubstr("--max-ranges"));
  }
}

TEST(BoundParsedBytes, RefusesRangesThatAreCutShort) {
  const std::string whole = PackedRanges(3);
  for (size_t length = 1; length < whole.size(); ++length) {
    EXPECT_FALSE(BoundParsedBytes(whole.substr(0, length), {}).ok()) << length;
  }
  EXPECT_FALSE(BoundParsedBytes("\x1a\x03\x12\xff\x01", {}).ok());
}

TEST(BoundParsedBytes, RefusesWhatIsNoMessage) {
  for (const std::string& message :
       {std::string("\xff"), std::string("\x0a\x05"), std::string("\x0a\xff\xff\xff\xff\x0f"),
        std::string("\x0a\x02\x0a\x05"), std::string("\x0c"), std::string("\x0b")}) {
    EXPECT_EQ(BoundParsedBytes(message, {10, 4}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace gradclip
