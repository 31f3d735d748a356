// Where gradient bytes are kept between norm and reply: page-backed chunks from a pool, reused from
// step to step, because first-touch page faults cost more than the clipping does.
#ifndef GRADCLIP_SERVER_MEMORY_ARENA_H_
#define GRADCLIP_SERVER_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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

  ArenaPool(const ArenaPool&) = delete;
  ArenaPool& operator=(const ArenaPool&) = delete;

  // The chunk given back last, whose pages are the likeliest to be in caches; else a new one.
  std::byte* Take();  // nullptr where the system has no memory
  void Give(std::byte* chunk);

  // Unmaps the free chunks that have not been used for a whole interval between two calls of
  // Trim().
  void Trim();

  uint64_t free_bytes() const;
  uint64_t used_bytes() const;

 private:
  struct FreeChunk {
    std::byte* chunk;
    uint64_t trims;  // trims_ when it was given back
  };

  std::byte* Map();

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<FreeChunk> free_;  // last in, first out; hence `trims` never falls along it
  uint64_t used_chunks_ = 0;
  uint64_t trims_ = 0;           // calls of Trim() so far
  std::byte* lowest_ = nullptr;  // the next chunk is asked for just below
};

// The bytes of one gradient, in the order in which they came, as segments of at most
// kSegmentBytes that each end at an element's end. Not thread-safe, but segments may be read on
// other threads once they are complete; hold a shared_ptr to the buffer while they do.
class ArenaBuffer {
 public:
  static constexpr size_t kSegmentBytes = size_t{1} << 20;  // the contract's largest reply message

  // Gradients up to this size are one plain allocation: a chunk would be mostly empty.
  static constexpr size_t kHeapBytes = size_t{256} << 10;

  // For a gradient of `total_bytes`; small ones come from the heap, others chunk by chunk. Takes
  // nothing yet. REQUIRES: `pool` outlives it.
  ArenaBuffer(ArenaPool& pool, uint64_t total_bytes);
  ~ArenaBuffer();

  ArenaBuffer(const ArenaBuffer&) = delete;
  ArenaBuffer& operator=(const ArenaBuffer&) = delete;

  // What `total_bytes` hold of memory once all is appended, at most: what a budget should charge.
  // Whole chunks above kHeapBytes, with room for elements that do not fill their segment: at most
  // total_bytes * (1 + 6e-6) + 2 MiB. Saturates at 2^64 - 1.
  static uint64_t Footprint(uint64_t total_bytes);

  // Copies whole elements of `element_size` bytes to the end; they may be split over segments
  // between elements, never within one. Where sizes are mixed, a segment may end up to 6 bytes
  // short. False where the system has no memory left; what was copied until then stays.
  // REQUIRES: bytes.size() is a multiple of element_size (2, 4 or 8); not more than total_bytes in
  // all.
  bool Append(std::span<const std::byte> bytes, size_t element_size);

  // All segments but the last are complete; the last is once total_bytes are there. The list itself
  // is invalid after Append(); the bytes it points to stay where they are.
  std::span<const std::span<std::byte>> segments() const { return segments_; }

  uint64_t size() const { return size_; }  // bytes appended so far

 private:
  // Opens an empty segment. False where the system has no memory left.
  bool AddSegment();

  ArenaPool& pool_;
  const uint64_t total_bytes_;
  uint64_t size_ = 0;
  std::unique_ptr<std::byte[]> heap_;
  std::vector<std::byte*> chunks_;  // two segments each
  std::vector<std::span<std::byte>> segments_;
  size_t capacity_ = 0;  // bytes that the last segment may grow to
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_MEMORY_ARENA_H_
