#include "client/gradclip/shared_ranges.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

constexpr uint64_t kLimit = uint64_t{8} << 20;

std::string Flat(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

RegionToken Token() {
  RegionToken token;
  token.fill(std::byte{0xab});
  return token;
}

std::vector<SharedRange> Ranges(uint64_t count) {
  std::vector<SharedRange> ranges;
  for (uint64_t i = 0; i < count; ++i) ranges.push_back({i * 128, 64 + i % 3});
  return ranges;
}

TEST(SharedRanges, AreTheFieldOfBothRequests) {
  const std::vector<SharedRange> ranges = {{64, 16}, {0, uint64_t{1} << 40}};
  const auto messages = SerialiseRanges(Token(), ranges, kLimit);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].bytes, (uint64_t{1} << 40) + 16);
  v1::ClipGradNormRequest clip;
  ASSERT_TRUE(clip.ParseFromString(Flat(messages[0].message)));
  v1::ComputeNormRequest norm;
  ASSERT_TRUE(norm.ParseFromString(Flat(messages[0].message)));
  ASSERT_TRUE(norm.has_shared());
  for (const v1::SharedRanges& shared : {clip.shared(), norm.shared()}) {
    EXPECT_EQ(shared.region(), std::string(16, '\xab'));
    EXPECT_THAT(shared.offset(), ::testing::ElementsAre(64, 0));
    EXPECT_THAT(shared.length(), ::testing::ElementsAre(16, uint64_t{1} << 40));
  }
}

// All ranges come once, in order, and no message is over the limit.
void ExpectAllRanges(uint64_t count, uint64_t limit, size_t expected_messages) {
  const std::vector<SharedRange> ranges = Ranges(count);
  const auto messages = SerialiseRanges(Token(), ranges, limit);
  EXPECT_EQ(messages.size(), expected_messages);
  size_t next = 0;
  for (const RangesMessage& message : messages) {
    const std::string bytes = Flat(message.message);
    EXPECT_LE(bytes.size(), std::min(limit, uint64_t{1} << 20));
    v1::ComputeNormRequest request;
    ASSERT_TRUE(request.ParseFromString(bytes));
    uint64_t total = 0;
    for (int i = 0; i < request.shared().offset_size(); ++i, ++next) {
      EXPECT_EQ(request.shared().offset(i), ranges[next].offset);
      EXPECT_EQ(request.shared().length(i), ranges[next].length);
      total += ranges[next].length;
    }
    EXPECT_EQ(message.bytes, total);
  }
  EXPECT_EQ(next, count);
}

TEST(SharedRanges, AreSplitWhereTheyAreMany) {
  ExpectAllRanges(0, kLimit, 0);
  ExpectAllRanges(32768, kLimit, 1);
  ExpectAllRanges(32769, kLimit, 2);
  ExpectAllRanges(70000, kLimit, 3);
}

TEST(SharedRanges, KeepToTheServersLimit) {
  ExpectAllRanges(100, 64 + 10 * 16, 10);
  ExpectAllRanges(3, 80, 3);
  EXPECT_EQ(SerialiseRanges(Token(), Ranges(3), 1).size(), 3u);  // the server's to refuse
}

TEST(OutgoingRanges, CountsTheBytesThatItsMessagesStandFor) {
  const auto messages = SerialiseRanges(Token(), Ranges(3), 96);
  ASSERT_EQ(messages.size(), 2u);
  OutgoingRanges ranges(messages);
  EXPECT_EQ(ranges.total_bytes(), 64u + 65 + 66);
  EXPECT_EQ(ranges.sent(), 0u);
  ranges.Next();
  EXPECT_EQ(ranges.cut_bytes(), 64u + 65);
  EXPECT_FALSE(ranges.done());
  ranges.Next();
  EXPECT_EQ(ranges.cut_bytes(), ranges.total_bytes());
  EXPECT_EQ(ranges.sent(), 2u);
  EXPECT_TRUE(ranges.done());
}

}  // namespace
}  // namespace gradclip
