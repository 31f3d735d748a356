#include "client/gradclip/scale.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace gradclip {
namespace {

// Below this a thread costs more than it saves.
constexpr uint64_t kThreadsAbove = uint64_t{32} << 20;

// One thread's turn: small enough to share evenly, large enough to be worth taking.
constexpr uint64_t kChunkBytes = uint64_t{4} << 20;

struct Chunk {
  DType dtype;
  std::byte* elements;
  size_t count;
};

template <typename Changes>
std::vector<Chunk> CutIntoChunks(std::span<const Tensor> tensors, const Changes& changes) {
  std::vector<Chunk> chunks;
  chunks.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    if (!changes(tensor.dtype)) continue;
    const uint64_t size = ElementSize(tensor.dtype);
    const uint64_t elements = tensor.elements();
    for (uint64_t at = 0; at < elements; at += kChunkBytes / size) {
      chunks.push_back({tensor.dtype, static_cast<std::byte*>(tensor.data) + at * size,
                        std::min(elements - at, kChunkBytes / size)});
    }
  }
  return chunks;
}

// The last chunk first: what a server, or the caller, has gone through before ends there, and
// caches may still hold it.
template <typename Work>
void ForEach(const std::vector<Chunk>& chunks, const Work& work) {
  uint64_t bytes = 0;
  for (const Chunk& chunk : chunks) bytes += chunk.count * ElementSize(chunk.dtype);

  std::atomic<size_t> next = 0;
  const auto run = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) {
      work(chunks[chunks.size() - 1 - i]);
    }
  };
  std::vector<std::jthread> helpers;
  if (bytes > kThreadsAbove) {
    try {
      for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) helpers.emplace_back(run);
    } catch (const std::system_error&) {
      // The system gives no more threads; those there are do the work.
    }
  }
  run();
}

}  // namespace

void ApplyCoefficient(const Backend& backend, std::span<const Tensor> tensors, double coefficient,
                      bool skipped) {
  if (!skipped) {
    const auto changes = [&](DType dtype) { return !LeavesUnchanged(dtype, coefficient); };
    ForEach(CutIntoChunks(tensors, changes), [&](const Chunk& chunk) {
      backend.Scale(chunk.dtype, chunk.elements, chunk.count, coefficient);
    });
  } else if (coefficient == 0) {
    ForEach(CutIntoChunks(tensors, [](DType) { return true; }), [](const Chunk& chunk) {
      std::memset(chunk.elements, 0, chunk.count * ElementSize(chunk.dtype));
    });
  }
}

}  // namespace gradclip
