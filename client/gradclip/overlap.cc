#include "client/gradclip/overlap.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/gradclip/start_cache.h"

namespace gradclip {
namespace {

struct Range {
  uintptr_t begin;
  uintptr_t end;
  size_t tensor;
};

// Of the tensors that have elements.
std::vector<Range> RangesOf(std::span<const Tensor> tensors) {
  std::vector<Range> ranges;
  ranges.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto begin = reinterpret_cast<uintptr_t>(tensors[i].data);
    if (const uint64_t bytes = tensors[i].bytes(); bytes > 0) {
      ranges.push_back({begin, begin + bytes, i});
    }
  }
  return ranges;
}

}  // namespace

absl::Status CheckOverlap(std::span<const Tensor> tensors) {
  std::vector<Range> ranges = RangesOf(tensors);
  const auto by_address = [](const Range& a, const Range& b) { return a.begin < b.begin; };
  if (!std::is_sorted(ranges.begin(), ranges.end(), by_address)) {
    std::sort(ranges.begin(), ranges.end(), by_address);
  }
  const auto overlap = std::adjacent_find(
      ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return b.begin < a.end; });
  if (overlap == ranges.end()) return absl::OkStatus();
  const auto [first, second] = std::minmax(overlap->tensor, (overlap + 1)->tensor);
  return absl::InvalidArgumentError(absl::StrFormat(
      "tensors %s and %s overlap in memory, where elements would be clipped twice: list such "
      "memory once (replica is for copies that have memory of their own)",
      DescribeTensor(tensors[first], first), DescribeTensor(tensors[second], second)));
}

}  // namespace gradclip
