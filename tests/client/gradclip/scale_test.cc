#include "client/gradclip/scale.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class Scale : public ::testing::Test {
 protected:
  void Apply(const std::vector<Tensor>& tensors, double coefficient, bool skipped = false) {
    const auto backend = MakeBackend("auto");
    ASSERT_TRUE(backend.ok()) << backend.status();
    ApplyCoefficient(**backend, tensors, coefficient, skipped);
  }

  std::vector<float> floats_ = {1, -2, 3};
  std::vector<double> doubles_ = {4, 5};
  std::vector<uint16_t> halves_ = {0x3c00, 0x4000};   // 1, 2
  std::vector<uint16_t> bfloats_ = {0x3f80, 0xc000};  // 1, -2
  const std::vector<Tensor> tensors_ = {{"f", DType::kFloat32, {3}, floats_.data()},
                                        {"e", DType::kFloat32, {0}, nullptr},
                                        {"d", DType::kFloat64, {2}, doubles_.data(), true},
                                        {"h", DType::kFloat16, {2}, halves_.data()},
                                        {"b", DType::kBFloat16, {2}, bfloats_.data()}};
};

TEST_F(Scale, MultipliesEveryTensorReplicasToo) {
  Apply(tensors_, 0.5);
  EXPECT_THAT(floats_, ElementsAre(0.5f, -1.0f, 1.5f));
  EXPECT_THAT(doubles_, ElementsAre(2.0, 2.5));
  EXPECT_THAT(halves_, ElementsAre(0x3800, 0x3c00));
  EXPECT_THAT(bfloats_, ElementsAre(0x3f00, 0xbf80));
}

TEST_F(Scale, LeavesATypeAloneForWhichTheCoefficientRoundsToOne) {
  const uint32_t signalling_nan = 0x7fa00001;  // a multiplication would make it quiet
  std::memcpy(floats_.data(), &signalling_nan, sizeof(signalling_nan));
  Apply(tensors_, 1 - 1e-12);
  EXPECT_EQ(std::memcmp(floats_.data(), &signalling_nan, sizeof(signalling_nan)), 0);
  EXPECT_THAT(doubles_, ElementsAre(4 * (1 - 1e-12), 5 * (1 - 1e-12)));
}

TEST_F(Scale, AssignsZeroWhereSkippedWithZero) {
  floats_[0] = std::numeric_limits<float>::quiet_NaN();
  Apply(tensors_, 0, /*skipped=*/true);
  EXPECT_THAT(floats_, Each(0.0f));
  EXPECT_FALSE(std::signbit(floats_[1]));
  EXPECT_THAT(doubles_, Each(0.0));
  EXPECT_THAT(halves_, Each(0));
  EXPECT_THAT(bfloats_, Each(0));
}

TEST_F(Scale, TouchesNothingWhereSkippedWithOne) {
  Apply(tensors_, 1, /*skipped=*/true);
  EXPECT_THAT(floats_, ElementsAre(1, -2, 3));
  EXPECT_THAT(doubles_, ElementsAre(4, 5));
}

TEST_F(Scale, MultipliesByZeroAndByNaNWhereNotSkipped) {
  floats_[0] = std::numeric_limits<float>::infinity();
  Apply(tensors_, 0);
  EXPECT_TRUE(std::isnan(floats_[0]));
  EXPECT_TRUE(std::signbit(floats_[1]));
  EXPECT_EQ(doubles_[0], 0);
  Apply(tensors_, kNaN);
  EXPECT_TRUE(std::isnan(floats_[2]));
  EXPECT_TRUE(std::isnan(doubles_[1]));
}

TEST_F(Scale, ReachesEveryElementOfAGradientSharedAmongThreads) {
  std::vector<float> large((size_t{36} << 20) / sizeof(float) + 5, 2.0f);
  const std::vector<Tensor> tensors = {
      {"f", DType::kFloat32, {3}, floats_.data()},
      {"l", DType::kFloat32, {static_cast<int64_t>(large.size())}, large.data()}};
  Apply(tensors, 0.25);
  EXPECT_EQ(std::count(large.begin(), large.end(), 0.5f), static_cast<int64_t>(large.size()));
  EXPECT_THAT(floats_, ElementsAre(0.25f, -0.5f, 0.75f));
  Apply(tensors, 0, /*skipped=*/true);
  EXPECT_EQ(std::count(large.begin(), large.end(), 0.0f), static_cast<int64_t>(large.size()));
}

}  // namespace
}  // namespace gradclip
