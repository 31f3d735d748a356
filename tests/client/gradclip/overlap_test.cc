#include "client/gradclip/overlap.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

namespace gradclip {
namespace {

using ::testing::HasSubstr;

float memory[100];

Tensor TensorAt(std::string name, int64_t element, int64_t elements) {
  return {std::move(name), DType::kFloat32, {elements}, memory + element};
}

TEST(CheckOverlap, AllowsTensorsSideBySideInAnyOrder) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 5; ++i) tensors.push_back(TensorAt("", i * 10, 10));
  do {
    EXPECT_TRUE(CheckOverlap(tensors).ok());
  } while (std::next_permutation(tensors.begin(), tensors.end(),
                                 [](const auto& a, const auto& b) { return a.data < b.data; }));
  EXPECT_TRUE(CheckOverlap({}).ok());
}

TEST(CheckOverlap, NamesBothTensorsInTheOrderGiven) {
  const Tensor middle = TensorAt("middle", 50, 10);
  const Tensor others[] = {TensorAt("same", 50, 10), TensorAt("inside", 55, 1),
                           TensorAt("around", 0, 100), TensorAt("before", 0, 51),
                           TensorAt("behind", 59, 41)};
  for (const Tensor& other : others) {
    const Tensor tensors[] = {TensorAt("", 99, 0), middle, other};
    const absl::Status status = CheckOverlap(tensors);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                HasSubstr("tensors \"middle\" and \"" + other.name + "\" overlap in memory"));
  }
  const Tensor nameless[] = {TensorAt("", 1, 1), TensorAt("", 0, 2)};
  EXPECT_THAT(CheckOverlap(nameless).message(), HasSubstr("tensors #0 and #1 overlap"));
}

TEST(CheckOverlap, FindsOneThatReachesOverSeveral) {
  const Tensor tensors[] = {TensorAt("long", 0, 50), TensorAt("", 60, 5), TensorAt("far", 40, 1)};
  EXPECT_THAT(CheckOverlap(tensors).message(), HasSubstr("\"long\" and \"far\""));
}

TEST(CheckOverlap, LeavesOutTensorsWithoutElements) {
  const Tensor tensors[] = {TensorAt("a", 0, 10),
                            TensorAt("empty", 5, 0),
                            {"null", DType::kFloat32, {0, 3}, nullptr},
                            TensorAt("b", 10, 10)};
  EXPECT_TRUE(CheckOverlap(tensors).ok());
}

}  // namespace
}  // namespace gradclip
