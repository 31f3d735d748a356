// [begin, end) of elements, units or examples, and where such a range may be cut.
#ifndef GRADCLIP_EXAMPLES_TRAIN_RANGE_H_
#define GRADCLIP_EXAMPLES_TRAIN_RANGE_H_

#include <cstddef>

namespace train {

struct Range {
  size_t begin = 0;
  size_t end = 0;

  size_t size() const { return end - begin; }
};

// Of 0 .. total the piece `index` of `pieces`, which differ by one in size at most and may be
// empty.
inline Range Cut(size_t total, size_t pieces, size_t index) {
  return {total * index / pieces, total * (index + 1) / pieces};
}

// A server sums each tensor in blocks of so many elements, and adds the blocks' sums without any
// rounding. Ranks that cut a tensor between blocks, at a multiple of this from its first element,
// get to the bit the norm that one caller with the whole tensor gets. Cut elsewhere, all ranks
// still get one norm, which may differ from that in its last bits.
inline constexpr size_t kBlockElements = 4096;

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_RANGE_H_
