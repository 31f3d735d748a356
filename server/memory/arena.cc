#include "server/memory/arena.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <new>

#include "server/memory/streaming_copy.h"

namespace gradclip {
namespace {

constexpr size_t kChunkBytes = ArenaPool::kChunkBytes;
static_assert(kChunkBytes == 2 * ArenaBuffer::kSegmentBytes);

// From this size on, the caches will not hold a gradient until it is scaled.
constexpr uint64_t kStreamedBytes = uint64_t{8} << 20;

bool IsAligned(const std::byte* address) {
  return reinterpret_cast<uintptr_t>(address) % kChunkBytes == 0;
}

// Fresh pages at `hint` where that is free, or anywhere. nullptr where there are none.
std::byte* MapPages(std::byte* hint, size_t bytes) {
  void* pages =
      mmap(hint, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<std::byte*>(pages);
}

}  // namespace

ArenaPool::ArenaPool() = default;

ArenaPool::~ArenaPool() {
  assert(used_chunks_ == 0);
  Trim();
  Trim();  // unmaps all that was free at the first
}

std::byte* ArenaPool::Take() {
  std::byte* chunk;
  {
    std::lock_guard lock(mutex_);
    if (free_.empty()) {
      chunk = Map();
      if (chunk == nullptr) return nullptr;
    } else {
      chunk = free_.back().chunk;
      free_.pop_back();
    }
    ++used_chunks_;
  }
  ASAN_UNPOISON_MEMORY_REGION(chunk, kChunkBytes);
  return chunk;
}

void ArenaPool::Give(std::byte* chunk) {
  ASAN_POISON_MEMORY_REGION(chunk, kChunkBytes);
  std::lock_guard lock(mutex_);
  assert(used_chunks_ > 0);
  --used_chunks_;
  free_.push_back({chunk, trims_});
}

void ArenaPool::Trim() {
  std::vector<FreeChunk> idle;
  {
    std::lock_guard lock(mutex_);
    const auto end = std::find_if(free_.begin(), free_.end(),
                                  [this](const FreeChunk& free) { return free.trims >= trims_; });
    idle.assign(free_.begin(), end);
    free_.erase(free_.begin(), end);
    ++trims_;
  }
  // Without the lock: unmapping many gigabytes takes a while.
  for (const FreeChunk& free : idle) {
    ASAN_UNPOISON_MEMORY_REGION(free.chunk, kChunkBytes);
    munmap(free.chunk, kChunkBytes);
  }
}

uint64_t ArenaPool::free_bytes() const {
  std::lock_guard lock(mutex_);
  return free_.size() * kChunkBytes;
}

uint64_t ArenaPool::used_bytes() const {
  std::lock_guard lock(mutex_);
  return used_chunks_ * kChunkBytes;
}

// A system allows some 65,000 mappings and joins those that touch. So a chunk is asked for right
// below the last one; only where that place is taken is it cut out of a mapping twice its size.
std::byte* ArenaPool::Map() {
  std::byte* chunk = MapPages(lowest_ == nullptr ? nullptr : lowest_ - kChunkBytes, kChunkBytes);
  if (chunk == nullptr) return nullptr;
  if (!IsAligned(chunk)) {
    munmap(chunk, kChunkBytes);
    std::byte* pages = MapPages(nullptr, 2 * kChunkBytes);
    if (pages == nullptr) return nullptr;
    const size_t before = kChunkBytes - reinterpret_cast<uintptr_t>(pages) % kChunkBytes;
    chunk = pages + before;
    munmap(pages, before);
    if (before < kChunkBytes) munmap(chunk + kChunkBytes, kChunkBytes - before);
  }
  lowest_ = chunk;
  madvise(chunk, kChunkBytes, MADV_HUGEPAGE);  // where unsupported, small pages do
  return chunk;
}

ArenaBuffer::ArenaBuffer(ArenaPool& pool, uint64_t total_bytes)
    : pool_(pool), total_bytes_(total_bytes) {}

ArenaBuffer::~ArenaBuffer() {
  for (std::byte* chunk : chunks_) pool_.Give(chunk);
}

uint64_t ArenaBuffer::Footprint(uint64_t total_bytes) {
  if (total_bytes <= kHeapBytes) return total_bytes;
  if (total_bytes > std::numeric_limits<uint64_t>::max() / 2) {
    return std::numeric_limits<uint64_t>::max();
  }
  // Elements are of 2, 4 or 8 bytes, so what does not fit leaves at most 6 bytes empty.
  constexpr uint64_t kLeastInSegment = kSegmentBytes - 6;
  const uint64_t segments = (total_bytes + kLeastInSegment - 1) / kLeastInSegment;
  return (segments + 1) / 2 * kChunkBytes;
}

bool ArenaBuffer::Append(std::span<const std::byte> bytes, size_t element_size) {
  assert(element_size == 2 || element_size == 4 || element_size == 8);
  assert(bytes.size() % element_size == 0);
  assert(bytes.size() <= total_bytes_ - size_);
  while (!bytes.empty()) {
    const size_t room = segments_.empty() ? 0 : capacity_ - segments_.back().size();
    const size_t count = std::min(room / element_size * element_size, bytes.size());
    if (count == 0) {
      if (!AddSegment()) return false;
      continue;
    }
    std::span<std::byte>& segment = segments_.back();
    std::byte* const end = segment.data() + segment.size();
    if (total_bytes_ < kStreamedBytes) {
      std::memcpy(end, bytes.data(), count);
    } else {
      StreamingCopy(end, bytes.data(), count);
    }
    segment = {segment.data(), segment.size() + count};
    size_ += count;
    bytes = bytes.subspan(count);
  }
  return true;
}

bool ArenaBuffer::AddSegment() {
  std::byte* start;
  if (total_bytes_ <= kHeapBytes) {
    heap_.reset(new (std::nothrow) std::byte[total_bytes_]);
    start = heap_.get();
    capacity_ = total_bytes_;
  } else if (segments_.size() % 2 == 1) {
    start = chunks_.back() + kSegmentBytes;
  } else {
    start = pool_.Take();
    if (start != nullptr) chunks_.push_back(start);
    capacity_ = kSegmentBytes;
  }
  if (start == nullptr) return false;
  segments_.push_back({start, 0});
  return true;
}

}  // namespace gradclip
