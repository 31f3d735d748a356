#include "server/norm/gradient_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "server/backend/element.h"
#include "server/backend/floating_point_environment.h"
#include "server/norm/power.h"

namespace gradclip {
namespace {

// Lanes added as a binary tree of fixed shape: part of the answer, as the order in the lanes is.
GRADCLIP_OUT_OF_LINE double SumOfLanes(const Lanes& lanes) {
  double sums[kLanes / 2];
  for (size_t i = 0; i < 16; ++i) sums[i] = lanes[i] + lanes[i + 16];
  for (size_t i = 0; i < 8; ++i) sums[i] += sums[i + 8];
  for (size_t i = 0; i < 4; ++i) sums[i] += sums[i + 4];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

}  // namespace

GradientNorm::GradientNorm(const Backend& backend, double norm_type, bool per_tensor, double factor)
    : backend_(backend),
      per_tensor_(per_tensor),
      factor_(factor),
      total_(norm_type),
      tensor_(norm_type) {}

LaneTerm GradientNorm::term() const {
  return total_.norm_type() == 2 ? LaneTerm::kSquare : LaneTerm::kMagnitude;
}

std::byte* GradientNorm::block() {
  if (block_ == nullptr) {
    block_ =
        std::make_unique_for_overwrite<std::byte[]>(kBlockElements * ElementSize(DType::kFloat64));
  }
  return block_.get();
}

void GradientNorm::BeginTensor(DType dtype, bool counted) {
  dtype_ = dtype;
  counted_ = counted;
  const double p = total_.norm_type();
  way_ = std::isinf(p)                                    ? Way::kLargest
         : (p == 1 || p == 2) && dtype != DType::kFloat64 ? Way::kLanes
                                                          : Way::kWholeBlocks;
  taken_ = 0;
  in_block_ = 0;
  lanes_ = {};
  summary_ = {};
}

void GradientNorm::Add(const std::byte* elements, size_t count) {
  if (count == 0) return;
  const FloatingPointEnvironment environment;
  AddInDefaultEnvironment(elements, count);
}

GRADCLIP_OUT_OF_LINE void GradientNorm::AddInDefaultEnvironment(const std::byte* elements,
                                                                size_t count) {
  const uint64_t flat_index = taken_;
  taken_ += count;
  if (per_tensor_) {
    const ElementCounts counts = backend_.Count(dtype_, elements, count);
    Record(counts.nonfinite, counts.first_nonfinite, flat_index);
    summary_.zeros += counts.zeros;
  }
  switch (way_) {
    case Way::kLargest: {
      const double largest = backend_.LargestMagnitude(dtype_, elements, count);
      if (!std::isfinite(largest)) CountNonfinite(elements, count, flat_index);
      tensor_.AddLargest(largest);
      break;
    }
    case Way::kLanes:
      AddToLanes(elements, count, flat_index);
      break;
    case Way::kWholeBlocks:
      AddToBlocks(elements, count, flat_index);
  }
}

void GradientNorm::AddBlocks(const NormPartial& sum, const TensorSummary& found, uint64_t count) {
  Record(found.nonfinite, found.first_nonfinite, taken_);
  summary_.zeros += found.zeros;
  tensor_.Merge(sum);
  taken_ += count;
}

void GradientNorm::Record(uint64_t nonfinite, uint64_t first_nonfinite, uint64_t flat_index) {
  if (summary_.nonfinite == 0 && nonfinite != 0) {
    summary_.first_nonfinite = flat_index + first_nonfinite;
  }
  summary_.nonfinite += nonfinite;
}

// For elements that turned a sum. Only with per_tensor are all elements counted, and then already:
// that costs a quarter to a half of the speed.
void GradientNorm::CountNonfinite(const std::byte* elements, size_t count, uint64_t flat_index) {
  if (per_tensor_) return;
  const ElementCounts counts = backend_.Count(dtype_, elements, count);
  Record(counts.nonfinite, counts.first_nonfinite, flat_index);
}

void GradientNorm::AddToLanes(const std::byte* elements, size_t count, uint64_t flat_index) {
  while (count != 0) {
    const size_t now = std::min(count, kBlockElements - in_block_);
    backend_.AddToLanes(dtype_, term(), elements, now, in_block_ % kLanes, lanes_);
    block_sum_ = SumOfLanes(lanes_);
    // Sums of finite F32, F16 or BF16 can't overflow a double. A sum that isn't finite stays so to
    // the block's end, and one that was finite until here had no such element.
    if (!std::isfinite(block_sum_)) CountNonfinite(elements, now, flat_index);
    in_block_ += now;
    if (in_block_ == kBlockElements) {
      tensor_.AddSum(block_sum_, 0);
      lanes_ = {};
      in_block_ = 0;
    }
    flat_index += now;
    elements += now * ElementSize(dtype_);
    count -= now;
  }
}

void GradientNorm::AddToBlocks(const std::byte* elements, size_t count, uint64_t flat_index) {
  const size_t size = ElementSize(dtype_);
  while (count != 0) {
    const size_t now = std::min(count, kBlockElements - in_block_);
    if (now == kBlockElements) {
      EndBlock(elements, now, flat_index);
    } else {
      std::memcpy(block() + in_block_ * size, elements, now * size);
      in_block_ += now;
      if (in_block_ == kBlockElements) {
        in_block_ = 0;
        EndBlock(block(), kBlockElements, flat_index + now - kBlockElements);
      }
    }
    flat_index += now;
    elements += now * size;
    count -= now;
  }
}

void GradientNorm::EndBlock(const std::byte* elements, size_t count, uint64_t flat_index) {
  const double p = total_.norm_type();
  if (p == 1 || p == 2) {
    EndBlockOfSums(elements, count, flat_index);
  } else {
    EndBlockOfPowers(elements, count, flat_index);
  }
}

double GradientNorm::SumOfBlock(const std::byte* elements, size_t count) {
  lanes_ = {};
  backend_.AddToLanes(dtype_, term(), elements, count, 0, lanes_);
  return SumOfLanes(lanes_);
}

double GradientNorm::RescaledSumOfBlock(const std::byte* elements, size_t count, double factor) {
  if (elements != block()) std::memcpy(block(), elements, count * ElementSize(dtype_));
  backend_.Scale(dtype_, block(), count, factor);
  return SumOfBlock(block(), count);
}

void GradientNorm::EndBlockOfSums(const std::byte* elements, size_t count, uint64_t flat_index) {
  const double sum = SumOfBlock(elements, count);
  const int root = term() == LaneTerm::kSquare ? 2 : 1;
  if (!std::isfinite(sum)) {
    const ElementCounts counts = backend_.Count(dtype_, elements, count);
    if (counts.nonfinite == 0) {
      tensor_.AddSum(RescaledSumOfBlock(elements, count, 1 / kRescaleFactor),
                     root * kRescaleExponent);
      return;
    }
    if (!per_tensor_) Record(counts.nonfinite, counts.first_nonfinite, flat_index);
  } else if (root == 2 && sum < kSmallestSafeSquares) {
    tensor_.AddSum(RescaledSumOfBlock(elements, count, kRescaleFactor), -root * kRescaleExponent);
    return;
  }
  tensor_.AddSum(sum, 0);
}

void GradientNorm::EndBlockOfPowers(const std::byte* elements, size_t count, uint64_t flat_index) {
  const double largest = backend_.LargestMagnitude(dtype_, elements, count);
  if (largest == 0) return;
  if (!std::isfinite(largest)) {
    CountNonfinite(elements, count, flat_index);
    tensor_.AddScaled(largest, 0);
    return;
  }
  lanes_ = {};
  WithDType(dtype_, [&]<DType dtype>() {
    for (size_t i = 0; i < count; ++i) {
      const double x = std::fabs(LoadElement<dtype>(elements + i * ElementSize(dtype)));
      if (x != 0) lanes_[i % kLanes] += PowerOfQuotient(x, largest, total_.norm_type());
    }
  });
  tensor_.AddScaled(largest, SumOfLanes(lanes_));
}

TensorSummary GradientNorm::EndTensor() {
  const FloatingPointEnvironment environment;
  return EndTensorInDefaultEnvironment();
}

GRADCLIP_OUT_OF_LINE TensorSummary GradientNorm::EndTensorInDefaultEnvironment() {
  if (in_block_ != 0) {
    if (way_ == Way::kLanes) {
      tensor_.AddSum(block_sum_, 0);
    } else {
      EndBlock(block(), in_block_, taken_ - in_block_);
    }
    in_block_ = 0;
  }
  if (per_tensor_) summary_.norm = tensor_.Norm(factor_);
  if (counted_) total_.Merge(tensor_);
  tensor_.Clear();
  return summary_;
}

}  // namespace gradclip
