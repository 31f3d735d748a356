#include "client/gradclip/shared_layout.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Range = SharedRange;

TEST(SharedLayout, AlignsEveryTensorTo64Bytes) {
  const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {3}},
                                       {"scalar", DType::kFloat16, {}},
                                       {"full", DType::kFloat64, {8}},
                                       {"b", DType::kBFloat16, {2, 33}}};
  const auto layout = LayOut(tensors);
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(layout->offsets, ElementsAre(0, 64, 128, 192));
  EXPECT_EQ(layout->bytes, 192u + 132);
}

TEST(SharedLayout, GivesEmptyTensorsAPlaceWithoutBytes) {
  const std::vector<Tensor> tensors = {
      {"e", DType::kFloat32, {0}}, {"a", DType::kFloat32, {1}}, {"f", DType::kFloat64, {5, 0}}};
  const auto layout = LayOut(tensors);
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(layout->offsets, ElementsAre(0, 0, 64));
  EXPECT_TRUE(CheckPlaces(tensors, layout->offsets, layout->bytes).ok());
  EXPECT_EQ(LayOut({})->bytes, 0u);
}

TEST(SharedLayout, RefusesMoreBytesThanAFileHas) {
  const int64_t most = std::numeric_limits<int64_t>::max() / 4;
  const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {most}}, {"b", DType::kFloat32, {1}}};
  EXPECT_EQ(LayOut(tensors).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SharedLayout, NamesTheTensorThatDoesNotFit) {
  const std::vector<Tensor> tensors = {{"a", DType::kFloat16, {4}}, {"b", DType::kFloat64, {2}}};
  const auto refusal = [&](std::vector<uint64_t> offsets, uint64_t bytes = 32) {
    const absl::Status status = CheckPlaces(tensors, offsets, bytes);
    EXPECT_EQ(status.code(), status.ok() ? status.code() : absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({0, 16}), "");
  EXPECT_EQ(refusal({16, 0}), "");
  EXPECT_EQ(refusal({24, 8}), "");
  EXPECT_EQ(refusal({0}), "1 offsets were given for 2 tensors; each tensor needs one");
  EXPECT_EQ(refusal({1, 16}),
            "tensor \"a\": offset 1 is no multiple of 2, the size of an F16 element");
  EXPECT_EQ(refusal({0, 12}),
            "tensor \"b\": offset 12 is no multiple of 8, the size of an F64 element");
  EXPECT_EQ(refusal({0, 24}),
            "tensor \"b\": 16 bytes from offset 24 end beyond the memory's 32 bytes");
  EXPECT_EQ(refusal({34, 0}),
            "tensor \"a\": 8 bytes from offset 34 end beyond the memory's 32 bytes");
  EXPECT_EQ(refusal({0, std::numeric_limits<uint64_t>::max() - 7}),
            "tensor \"b\": 16 bytes from offset 18446744073709551608 end beyond the memory's 32 "
            "bytes");
}

TEST(SharedLayout, MakesOneRangeOfTensorsWithoutPadding) {
  const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {16}},
                                       {"e", DType::kFloat32, {0}},
                                       {"b", DType::kFloat64, {8}},
                                       {"c", DType::kBFloat16, {3}},
                                       {"d", DType::kBFloat16, {1}}};
  const auto layout = LayOut(tensors);
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(RangesOf(tensors, layout->offsets), ElementsAre(Range{0, 134}, Range{192, 2}));
}

TEST(SharedLayout, KeepsTheOrderOfTheTensors) {
  const std::vector<Tensor> tensors = {
      {"a", DType::kFloat32, {2}}, {"b", DType::kFloat32, {2}}, {"c", DType::kFloat32, {2}}};
  const std::vector<uint64_t> offsets = {16, 8, 24};
  EXPECT_THAT(RangesOf(tensors, offsets), ElementsAre(Range{16, 8}, Range{8, 8}, Range{24, 8}));
  EXPECT_THAT(RangesOf({}, {}), IsEmpty());
}

TEST(SharedLayout, MakesRunsOfOneDType) {
  std::vector<std::byte> memory(256);
  std::byte* const data = memory.data();
  const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {2, 2}, data},
                                       {"b", DType::kFloat32, {}, data + 16},
                                       {"e", DType::kFloat32, {0}, nullptr},
                                       {"c", DType::kFloat16, {2}, data + 20},
                                       {"d", DType::kFloat16, {2}, data + 32}};
  const std::vector<Tensor> runs = Runs(tensors);
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[0].data, data);
  EXPECT_THAT(runs[0].shape, ElementsAre(5));
  EXPECT_EQ(runs[1].data, data + 20);
  EXPECT_EQ(runs[1].dtype, DType::kFloat16);
  EXPECT_EQ(runs[2].data, data + 32);
}

}  // namespace
}  // namespace gradclip
