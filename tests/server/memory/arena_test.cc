#include "server/memory/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cerrno>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace gradclip {
namespace {

constexpr uint64_t kChunk = ArenaPool::kChunkBytes;
constexpr uint64_t kSegment = ArenaBuffer::kSegmentBytes;

bool IsMapped(std::byte* chunk) {
  std::vector<unsigned char> pages(kChunk / 4096);
  return mincore(chunk, kChunk, pages.data()) == 0;
}

TEST(ArenaPool, HandsOutAlignedWritableChunks) {
  ArenaPool pool;
  std::vector<std::byte*> chunks;
  for (int i = 0; i < 8; ++i) {
    std::byte* chunk = pool.Take();
    ASSERT_NE(chunk, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(chunk) % kChunk, 0);
    chunk[0] = std::byte{1};
    chunk[kChunk - 1] = std::byte{2};
    chunks.push_back(chunk);
  }
  EXPECT_EQ(std::set<std::byte*>(chunks.begin(), chunks.end()).size(), chunks.size());
  EXPECT_EQ(pool.used_bytes(), 8 * kChunk);
  EXPECT_EQ(pool.free_bytes(), 0);
  for (std::byte* chunk : chunks) pool.Give(chunk);
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.free_bytes(), 8 * kChunk);
}

TEST(ArenaPool, HandsOutTheChunkThatCameBackLast) {
  ArenaPool pool;
  std::byte* first = pool.Take();
  std::byte* second = pool.Take();
  pool.Give(first);
  pool.Give(second);
  EXPECT_EQ(pool.Take(), second);
  EXPECT_EQ(pool.Take(), first);
  pool.Give(first);
  pool.Give(second);
}

TEST(ArenaPool, TrimsOnlyWhatLayFreeForAWholeInterval) {
  ArenaPool pool;
  std::byte* idle = pool.Take();
  std::byte* busy = pool.Take();
  pool.Give(idle);
  pool.Give(busy);
  pool.Trim();  // both came back in the interval that ends here
  EXPECT_EQ(pool.free_bytes(), 2 * kChunk);
  EXPECT_EQ(pool.Take(), busy);
  pool.Give(busy);
  pool.Trim();
  EXPECT_EQ(pool.free_bytes(), kChunk);
  EXPECT_FALSE(IsMapped(idle));
  EXPECT_TRUE(IsMapped(busy));
  pool.Trim();
  EXPECT_EQ(pool.free_bytes(), 0);
  EXPECT_FALSE(IsMapped(busy));
}

TEST(ArenaPool, NeverTrimsChunksInUse) {
  ArenaPool pool;
  std::byte* chunk = pool.Take();
  for (int i = 0; i < 3; ++i) pool.Trim();
  chunk[kChunk / 2] = std::byte{1};
  EXPECT_EQ(pool.used_bytes(), kChunk);
  pool.Give(chunk);
}

TEST(ArenaPool, ServesThreads) {
  ArenaPool pool;
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&pool, i] {
      for (int round = 0; round < 200; ++round) {
        std::byte* a = pool.Take();
        std::byte* b = pool.Take();
        *a = *b = std::byte(i);
        if (round % 16 == 0) pool.Trim();
        EXPECT_EQ(*a, std::byte(i));
        pool.Give(a);
        pool.Give(b);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_LE(pool.free_bytes(), 8 * kChunk);
}

#ifdef __SANITIZE_ADDRESS__
TEST(ArenaPool, LetsTheAddressSanitizerSeeUseAfterGive) {
  ArenaPool pool;
  std::byte* chunk = pool.Take();
  pool.Give(chunk);
  EXPECT_EQ(__asan_region_is_poisoned(chunk, kChunk), chunk);
  ASSERT_EQ(pool.Take(), chunk);
  EXPECT_EQ(__asan_region_is_poisoned(chunk, kChunk), nullptr);
  pool.Give(chunk);
}
#endif

std::vector<std::byte> RandomBytes(size_t count) {
  std::mt19937_64 random(count);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = std::byte(random() & 0xff);
  return bytes;
}

std::vector<std::byte> Contents(const ArenaBuffer& buffer) {
  std::vector<std::byte> all;
  for (const std::span<std::byte> segment : buffer.segments()) {
    all.insert(all.end(), segment.begin(), segment.end());
  }
  return all;
}

TEST(ArenaBuffer, TakesNothingForNothing) {
  ArenaPool pool;
  ArenaBuffer buffer(pool, 0);
  EXPECT_TRUE(buffer.Append({}, 4));
  EXPECT_TRUE(buffer.segments().empty());
  EXPECT_EQ(ArenaBuffer::Footprint(0), 0);
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(ArenaBuffer, KeepsSmallGradientsInOneSegmentOutsideThePool) {
  ArenaPool pool;
  const std::vector<std::byte> bytes = RandomBytes(ArenaBuffer::kHeapBytes);
  ArenaBuffer buffer(pool, bytes.size());
  for (size_t start = 0; start < bytes.size(); start += 4096) {
    ASSERT_TRUE(buffer.Append(std::span(bytes).subspan(start, 4096), 2));
  }
  EXPECT_EQ(buffer.segments().size(), 1);
  EXPECT_EQ(Contents(buffer), bytes);
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(ArenaBuffer::Footprint(bytes.size()), bytes.size());
}

TEST(ArenaBuffer, KeepsLargeGradientsInSegmentsOfAMebibyteTwoToAChunk) {
  ArenaPool pool;
  const std::vector<std::byte> bytes = RandomBytes(3 * kSegment + 40);
  {
    ArenaBuffer buffer(pool, bytes.size());
    EXPECT_EQ(pool.used_bytes(), 0);  // nothing before it is needed
    ASSERT_TRUE(buffer.Append(std::span(bytes).first(8), 8));
    EXPECT_EQ(pool.used_bytes(), kChunk);
    ASSERT_TRUE(buffer.Append(std::span(bytes).subspan(8), 8));
    ASSERT_EQ(buffer.segments().size(), 4);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(buffer.segments()[i].size(), kSegment);
    EXPECT_EQ(buffer.segments()[3].size(), 40);
    EXPECT_EQ(buffer.size(), bytes.size());
    EXPECT_EQ(Contents(buffer), bytes);
    EXPECT_EQ(pool.used_bytes(), 2 * kChunk);
  }
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.free_bytes(), 2 * kChunk);
}

TEST(ArenaBuffer, EndsSegmentsBetweenElementsWhenSizesAreMixed) {
  ArenaPool pool;
  const std::vector<std::byte> bytes = RandomBytes(2 * kSegment);
  ArenaBuffer buffer(pool, bytes.size());
  ASSERT_TRUE(buffer.Append(std::span(bytes).first(2), 2));
  ASSERT_TRUE(buffer.Append(std::span(bytes).subspan(2, kSegment), 8));
  ASSERT_TRUE(buffer.Append(std::span(bytes).subspan(2 + kSegment, 4), 4));
  ASSERT_EQ(buffer.segments().size(), 2);
  EXPECT_EQ(buffer.segments()[0].size(), kSegment - 6);
  EXPECT_EQ(buffer.segments()[1].size(), 8 + 4);
  EXPECT_EQ(Contents(buffer), std::vector(bytes.begin(), bytes.begin() + 2 + kSegment + 4));
}

// Tensors of random dtypes and lengths, appended in random pieces: the bytes come out as they went
// in, no element is cut, and no more is taken than was charged.
TEST(ArenaBuffer, TakesAtMostItsFootprintForAnyMixOfElements) {
  std::mt19937 random(1);
  for (int round = 0; round < 6; ++round) {
    struct Tensor {
      size_t element_size;
      size_t elements;
    };
    std::vector<Tensor> tensors(1 + random() % 30);
    uint64_t total = 0;
    for (Tensor& tensor : tensors) {
      tensor = {size_t{2} << (random() % 3), random() % 100'000};
      total += tensor.element_size * tensor.elements;
    }
    const std::vector<std::byte> bytes = RandomBytes(total);

    ArenaPool pool;
    ArenaBuffer buffer(pool, total);
    std::span<const std::byte> rest = bytes;
    std::vector<bool> starts(total + 1);  // where an element starts, in the stream
    uint64_t position = 0;
    for (const Tensor& tensor : tensors) {
      for (size_t left = tensor.elements; left > 0;) {
        const size_t count = std::min<size_t>(left, 1 + random() % 50'000);
        ASSERT_TRUE(buffer.Append(rest.first(count * tensor.element_size), tensor.element_size));
        rest = rest.subspan(count * tensor.element_size);
        left -= count;
      }
      for (size_t i = 0; i < tensor.elements; ++i) {
        starts[position + i * tensor.element_size] = true;
      }
      position += tensor.elements * tensor.element_size;
    }

    starts[total] = true;
    EXPECT_EQ(Contents(buffer), bytes);
    EXPECT_LE(pool.used_bytes(), ArenaBuffer::Footprint(total));
    uint64_t end = 0;
    for (const std::span<std::byte> segment : buffer.segments()) {
      EXPECT_LE(segment.size(), kSegment);
      end += segment.size();
      EXPECT_TRUE(starts[end]) << "segment ends inside an element, at byte " << end;
    }
  }
}

// The worst mix: every segment but the last ends six bytes short.
TEST(ArenaBuffer, TakesItsFootprintInTheWorstCase) {
  ArenaPool pool;
  const uint64_t total = 6 * (kSegment - 6);
  const std::vector<std::byte> bytes = RandomBytes(kSegment);
  ArenaBuffer buffer(pool, total);
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(buffer.Append(std::span(bytes).first(2), 2));
    ASSERT_TRUE(buffer.Append(std::span(bytes).first(kSegment - 8), 8));
  }
  EXPECT_EQ(buffer.segments().size(), 6);
  EXPECT_EQ(pool.used_bytes(), ArenaBuffer::Footprint(total));
}

TEST(ArenaBuffer, FootprintIsAtMostATenthMoreThanTheBytesAndAChunk) {
  for (uint64_t total = 1; total < uint64_t{1} << 40; total = total * 5 / 4 + 1) {
    const uint64_t footprint = ArenaBuffer::Footprint(total);
    EXPECT_GE(footprint, total);
    EXPECT_LE(footprint, total + total / 10 + kChunk) << total;
  }
  EXPECT_EQ(ArenaBuffer::Footprint(ArenaBuffer::kHeapBytes + 1), kChunk);
  EXPECT_EQ(ArenaBuffer::Footprint(UINT64_MAX), UINT64_MAX);
}

}  // namespace
}  // namespace gradclip
