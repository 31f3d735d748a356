#include "client/gradclip/start_cache.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gradclip/v1/gradclip.pb.h"

namespace gradclip {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::ComputeNormStart Parsed(const Declaration& declaration) {
  v1::ComputeNormStart start;
  const grpc::Slice& bytes = declaration.serialised();
  EXPECT_TRUE(start.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size())));
  return start;
}

std::string ErrorOf(const Tensor& tensor) {
  const std::vector<Tensor> tensors = {{"first", DType::kFloat32, {1}}, tensor};
  const auto made = Declaration::Make(tensors);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument) << made.status();
  return std::string(made.status().message());
}

TEST(Declaration, DeclaresEveryTensorInOrder) {
  const std::vector<Tensor> tensors = {{"weight", DType::kFloat32, {2, 3}},
                                       {"", DType::kFloat64, {}},
                                       {"tied", DType::kBFloat16, {0, 5}, nullptr, true},
                                       {"half", DType::kFloat16, {7}}};
  const auto made = Declaration::Make(tensors);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->gradient_bytes(), 24u + 8 + 0 + 14);
  const v1::ComputeNormStart start = Parsed(**made);
  ASSERT_EQ(start.tensors_size(), 4);
  EXPECT_EQ(start.tensors(0).name(), "weight");
  EXPECT_EQ(start.tensors(0).dtype(), v1::DTYPE_FLOAT32);
  EXPECT_THAT(start.tensors(0).shape(), ElementsAre(2, 3));
  EXPECT_FALSE(start.tensors(0).replica());
  EXPECT_EQ(start.tensors(1).dtype(), v1::DTYPE_FLOAT64);
  EXPECT_THAT(start.tensors(1).shape(), ElementsAre());
  EXPECT_EQ(start.tensors(2).dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(start.tensors(2).replica());
  EXPECT_EQ(start.tensors(3).dtype(), v1::DTYPE_FLOAT16);
}

TEST(Declaration, RefusesNegativeExtents) {
  EXPECT_EQ(ErrorOf({"w", DType::kFloat32, {3, -2}}),
            "tensor \"w\": shape [3, -2] has the negative extent -2");
  EXPECT_THAT(ErrorOf({"", DType::kFloat32, {-1, 0}}), HasSubstr("tensor #1: shape [-1, 0]"));
}

TEST(Declaration, RefusesShapesThatOverflow) {
  EXPECT_THAT(
      ErrorOf({"w", DType::kFloat16, {int64_t{1} << 32, int64_t{1} << 32}}),
      HasSubstr("tensor \"w\": shape [4294967296, 4294967296] declares more than 2^63 - 1"));
  EXPECT_THAT(ErrorOf({"w", DType::kFloat32, {int64_t{1} << 61}}), HasSubstr("2^63 - 1 bytes"));
  EXPECT_THAT(ErrorOf({"w", DType::kFloat32, {(int64_t{1} << 61) - 1}}),
              HasSubstr("the gradient up to here"));
}

TEST(Declaration, TakesHugeExtentsBesideZero) {
  const std::vector<Tensor> tensors = {
      {"w", DType::kFloat32, {int64_t{1} << 40, int64_t{1} << 40, 0}}};
  const auto made = Declaration::Make(tensors);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->gradient_bytes(), 0u);
}

TEST(Declaration, RefusesAnUnknownDType) {
  EXPECT_THAT(ErrorOf({"w", static_cast<DType>(9), {3}}), HasSubstr("tensor \"w\": dtype is 9"));
}

TEST(Declaration, RefusesNamesThatAreNotUtf8) {
  const std::vector<Tensor> gradient = {{"gr\xffx", DType::kFloat32, {1}, nullptr}};
  const auto made = Declaration::Make(gradient);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(made.status().message(), "tensor #0: name \"gr\\xffx\" is not UTF-8");
}

TEST(StartCache, GivesTheSameDeclarationForTheSameTensors) {
  StartCache cache;
  float memory = 0;
  std::vector<Tensor> tensors = {{"a", DType::kFloat32, {2}}, {"b", DType::kFloat16, {3, 4}}};
  const auto first = cache.Get(tensors);
  tensors[0].data = &memory;  // data is not declared
  const auto second = cache.Get(tensors);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->get(), second->get());
}

TEST(StartCache, TellsApartWhateverDiffers) {
  const std::vector<std::vector<Tensor>> gradients = {
      {{"a", DType::kFloat32, {2}}},
      {{"b", DType::kFloat32, {2}}},
      {{"ab", DType::kFloat32, {2}}},
      {{"a", DType::kFloat64, {2}}},
      {{"a", DType::kFloat32, {2, 1}}},
      {{"a", DType::kFloat32, {1, 2}}},
      {{"a", DType::kFloat32, {2}, nullptr, true}},
      {{"a", DType::kFloat32, {2}}, {"", DType::kFloat32, {0}}},
      {{"", DType::kFloat32, {2}}, {"a", DType::kFloat32, {0}}},
      {},
  };
  for (const auto& one : gradients) {
    StartCache cache;
    for (const auto& other : gradients) {
      const auto kept = cache.Get(one);
      const auto got = cache.Get(other);
      ASSERT_TRUE(kept.ok() && got.ok());
      EXPECT_EQ(*kept == *got, &one == &other);
      ASSERT_EQ(Parsed(**got).tensors_size(), static_cast<int>(other.size()));
      for (size_t i = 0; i < other.size(); ++i) {
        EXPECT_EQ(Parsed(**got).tensors(static_cast<int>(i)).name(), other[i].name);
      }
    }
  }
}

TEST(StartCache, KeepsSeveralAndForgetsTheOldest) {
  StartCache cache;
  const auto declaration = [&](int64_t extent) {
    const std::vector<Tensor> tensors = {{"a", DType::kFloat32, {extent}}};
    return *cache.Get(tensors);
  };
  const auto first = declaration(1);
  for (int64_t extent = 2; extent <= 4; ++extent) declaration(extent);
  EXPECT_EQ(declaration(1), first);
  declaration(5);
  EXPECT_NE(declaration(1), first);
}

}  // namespace
}  // namespace gradclip
