// Where the tensors of a gradient lie in one piece of memory. Pure functions.
#ifndef GRADCLIP_CLIENT_GRADCLIP_SHARED_LAYOUT_H_
#define GRADCLIP_CLIENT_GRADCLIP_SHARED_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradclip/client.h"

namespace gradclip {

// Bytes [offset, offset + length) of the memory.
struct SharedRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  auto operator<=>(const SharedRange&) const = default;
};

// Where tensors begin, and how large the memory has to be.
struct SharedLayout {
  std::vector<uint64_t> offsets;
  uint64_t bytes = 0;
};

// Every tensor at the next multiple of 64 bytes (a cache line, and a register of AVX-512).
// INVALID_ARGUMENT where they need more than 2^63 - 1 bytes. REQUIRES: shapes have been checked.
absl::StatusOr<SharedLayout> LayOut(std::span<const Tensor> tensors);

// INVALID_ARGUMENT, naming the tensor and the numbers, where there is not one offset for each
// tensor, one is no multiple of the element's size, or a tensor ends beyond `memory_bytes`.
// REQUIRES: shapes have been checked.
absl::Status CheckPlaces(std::span<const Tensor> tensors, std::span<const uint64_t> offsets,
                         uint64_t memory_bytes);

// The gradient's flat stream as ranges of the memory, in order; tensors without padding between
// them make one. REQUIRES: CheckPlaces() is OK.
std::vector<SharedRange> RangesOf(std::span<const Tensor> tensors,
                                  std::span<const uint64_t> offsets);

// The same elements in as few nameless tensors as possible: one for each run of tensors of one
// dtype without padding between them. What is done to every element alike is then done in few
// calls.
std::vector<Tensor> Runs(std::span<const Tensor> tensors);

}  // namespace gradclip

#endif  // GRADCLIP_CLIENT_GRADCLIP_SHARED_LAYOUT_H_
