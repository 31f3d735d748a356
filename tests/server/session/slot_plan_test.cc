#include "server/session/slot_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace gradclip {
namespace {

constexpr uint64_t kSlotBytes = DeviceQueue::kSlotBytes;

CallSpec SpecOf(const std::vector<std::pair<DType, uint64_t>>& tensors) {
  CallSpec spec;
  for (const auto& [dtype, elements] : tensors) {
    spec.tensors.push_back(
        {.name = "", .dtype = dtype, .replica = elements % 3 == 1, .elements = elements});
  }
  return spec;
}

// Expects that the plan has all elements in order, in whole blocks, within the queue's limits.
void CheckPlan(const CallSpec& spec) {
  SlotPlan plan(spec);
  std::vector<DeviceRun> runs;
  size_t tensor = 0;
  uint64_t element = 0;
  uint64_t slots = 0;
  const auto skip_ended = [&] {
    while (tensor < spec.tensors.size() && element == spec.tensors[tensor].elements) {
      ++tensor;
      element = 0;
    }
  };
  for (; plan.Next(runs); ++slots) {
    ASSERT_FALSE(runs.empty());
    ASSERT_LE(runs.size(), DeviceQueue::kSlotRuns);
    ASSERT_LE(BytesUsed(runs), kSlotBytes);
    uint64_t end = 0;
    uint64_t blocks = 0;
    for (const DeviceRun& run : runs) {
      skip_ended();
      ASSERT_LT(tensor, spec.tensors.size());
      const TensorDeclaration& declared = spec.tensors[tensor];
      ASSERT_EQ(run.dtype, declared.dtype);
      ASSERT_EQ(run.counted, !declared.replica);
      ASSERT_EQ(run.first_block, blocks);
      ASSERT_EQ(run.address % DeviceQueue::kRunAlignment, 0u);
      ASSERT_GE(run.address, end);
      ASSERT_GT(run.elements, 0u);
      ASSERT_EQ(element % kBlockElements, 0u);
      element += run.elements;
      ASSERT_TRUE(element == declared.elements || element % kBlockElements == 0) << element;
      blocks += BlocksOf(run.elements);
      end = run.address + run.elements * ElementSize(run.dtype);
    }
    // No slot ends sooner than it has to.
    skip_ended();
    if (tensor < spec.tensors.size() && runs.size() < DeviceQueue::kSlotRuns) {
      const uint64_t next = std::min(spec.tensors[tensor].elements - element, kBlockElements) *
                            ElementSize(spec.tensors[tensor].dtype);
      ASSERT_GT(end + next + DeviceQueue::kRunAlignment, kSlotBytes);
    }
  }
  skip_ended();
  EXPECT_EQ(tensor, spec.tensors.size());
  EXPECT_EQ(SlotPlan::CountSlots(spec), slots);
}

TEST(SlotPlan, HasAllElementsInWholeBlocksWithinTheLimits) {
  std::mt19937_64 random(1);
  const std::vector<uint64_t> usual = {0,       1,       3,         4095,      4096,     4097,
                                       262'143, 262'144, 262'145,   524'288,   524'289,  1'048'575,
                                       300'001, 12'288,  1'048'576, 1'048'577, 5'000'000};
  for (int round = 0; round < 300; ++round) {
    std::vector<std::pair<DType, uint64_t>> tensors;
    const size_t count = round % 3 == 0 ? 3000 : 1 + random() % 12;
    for (size_t i = 0; i < count; ++i) {
      const auto dtype = static_cast<DType>(1 + random() % 4);
      tensors.emplace_back(dtype, round % 3 == 0 ? random() % 9 : usual[random() % usual.size()]);
    }
    SCOPED_TRACE(testing::Message() << "round " << round);
    CheckPlan(SpecOf(tensors));
    if (HasFatalFailure()) return;
  }
}

TEST(SlotPlan, OfNothingHasNoSlot) {
  CheckPlan(SpecOf({}));
  CheckPlan(SpecOf({{DType::kFloat32, 0}, {DType::kFloat64, 0}}));
}

TEST(SlotPlan, CountsSlotsOfAnyGradientAtOnce) {
  // The first slot has another tensor's 12 bytes, and so a block less; the last has that block and
  // the third tensor.
  EXPECT_EQ(
      SlotPlan::CountSlots(SpecOf(
          {{DType::kFloat32, 3}, {DType::kFloat16, uint64_t{1} << 61}, {DType::kFloat32, 1}})),
      (uint64_t{1} << 41) + 1);
}

}  // namespace
}  // namespace gradclip
