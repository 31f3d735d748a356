// [begin, end) of elements, units, examples or ranks, and how such a range is cut.
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

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_RANGE_H_
