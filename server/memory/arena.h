// Where gradient bytes are kept between norm and reply: page-backed chunks from a pool, reused from
// step to step, because first-touch page faults cost more than the clipping does.
#ifndef GRADCLIP_SERVER_MEMORY_ARENA_H_
#define GRADCLIP_SERVER_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace gradclip {

// Hands out chunks of kChunkBytes, aligned to it, with huge pages where the system gives them
// (madvise). Thread-safe. Free chunks are kept for the next call and given back to the system by
// Trim().
class ArenaPool {
 public:
  static constexpr size_t kChunkBytes = size_t{2} << 20;  // one huge page

  ArenaPool();
  ~ArenaPool();  // REQUIRES: every chunk is back

  std::byte* Take();  // nullptr where the system has no memory
  void Give(std::byte* chunk);

  // Unmaps the free chunks that have not been used for a whole interval between two calls of
  // Trim().
  void Trim();

  uint64_t free_bytes() const;
  uint64_t used_bytes() const;
};

// The bytes of one gradient, in the order in which they came, as segments of at most
// kSegmentBytes that each end at an element's end. Not thread-safe, but segments may be read on
// other threads once they are complete; hold a shared_ptr to the buffer while they do.
class ArenaBuffer {
 public:
  static constexpr size_t kSegmentBytes = size_t{1} << 20;  // the contract's largest reply message

  // For a gradient of `total_bytes`; small ones come from the heap, others chunk by chunk.
  ArenaBuffer(ArenaPool& pool, uint64_t total_bytes);
  ~ArenaBuffer();

  // What `total_bytes` hold of memory once all is appended: what a budget should charge.
  static uint64_t Footprint(uint64_t total_bytes);

  // Copies whole elements of `element_size` bytes to the end; they may be split over segments
  // between elements, never within one. False where the system has no memory left. REQUIRES:
  // bytes.size() is a multiple of element_size (2, 4 or 8); not more than total_bytes in all.
  bool Append(std::span<const std::byte> bytes, size_t element_size);

  std::span<const std::span<std::byte>> segments() const;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_ARENA_H_
