// Where a gradient may be cut between ranks.
#ifndef GRADCLIP_EXAMPLES_TRAIN_BLOCKS_H_
#define GRADCLIP_EXAMPLES_TRAIN_BLOCKS_H_

#include <cstddef>

namespace train {

// A server sums each tensor in blocks of so many elements, and adds the blocks' sums without any
// rounding. Ranks that cut a tensor between blocks, at a multiple of this from its first element,
// get to the bit the norm that one caller with the whole tensor gets. Cut elsewhere, all ranks
// still get one norm, which may differ from that in its last bits.
inline constexpr size_t kBlockElements = 4096;

}  // namespace train

#endif  // GRADCLIP_EXAMPLES_TRAIN_BLOCKS_H_
