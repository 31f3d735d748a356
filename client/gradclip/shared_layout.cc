#include "client/gradclip/shared_layout.h"

#include <cstddef>
#include <limits>

#include "absl/strings/str_format.h"
#include "client/gradclip/start_cache.h"

namespace gradclip {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();

}  // namespace

absl::StatusOr<SharedLayout> LayOut(std::span<const Tensor> tensors) {
  SharedLayout layout;
  layout.offsets.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    // Neither sum wraps: both terms are below 2^63.
    const uint64_t offset = (layout.bytes + kAlignment - 1) / kAlignment * kAlignment;
    layout.bytes = offset + tensor.bytes();
    if (layout.bytes > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%d tensors aligned to %d bytes need more than 2^63 - 1 bytes",
                          tensors.size(), kAlignment));
    }
    layout.offsets.push_back(offset);
  }
  return layout;
}

absl::Status CheckPlaces(std::span<const Tensor> tensors, std::span<const uint64_t> offsets,
                         uint64_t memory_bytes) {
  if (tensors.size() != offsets.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d offsets were given for %d tensors; each tensor needs one",
                        offsets.size(), tensors.size()));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t element_size = ElementSize(tensors[i].dtype);
    if (offsets[i] % element_size != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "tensor %s: offset %d is no multiple of %d, the size of an %s element",
          DescribeTensor(tensors[i], i), offsets[i], element_size, Name(tensors[i].dtype)));
    }
    const uint64_t bytes = tensors[i].bytes();
    if (offsets[i] > memory_bytes || bytes > memory_bytes - offsets[i]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: %d bytes from offset %d end beyond the memory's %d bytes",
                          DescribeTensor(tensors[i], i), bytes, offsets[i], memory_bytes));
    }
  }
  return absl::OkStatus();
}

std::vector<SharedRange> RangesOf(std::span<const Tensor> tensors,
                                  std::span<const uint64_t> offsets) {
  std::vector<SharedRange> ranges;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = tensors[i].bytes();
    if (bytes == 0) continue;
    if (!ranges.empty() && ranges.back().offset + ranges.back().length == offsets[i]) {
      ranges.back().length += bytes;
    } else {
      ranges.push_back({offsets[i], bytes});
    }
  }
  return ranges;
}

std::vector<Tensor> Runs(std::span<const Tensor> tensors) {
  std::vector<Tensor> runs;
  std::byte* end = nullptr;  // of the last run
  for (const Tensor& tensor : tensors) {
    if (tensor.bytes() == 0) continue;
    const auto elements = static_cast<int64_t>(tensor.elements());
    if (!runs.empty() && tensor.data == end && tensor.dtype == runs.back().dtype) {
      runs.back().shape[0] += elements;
    } else {
      runs.push_back({"", tensor.dtype, {elements}, tensor.data});
    }
    end = static_cast<std::byte*>(tensor.data) + tensor.bytes();
  }
  return runs;
}

}  // namespace gradclip
