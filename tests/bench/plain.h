// What the kernels are compared with: the simplest loops that read, or scale, all of some memory,
// as the compiler vectorises them. Pure functions.
#ifndef GRADCLIP_TESTS_BENCH_PLAIN_H_
#define GRADCLIP_TESTS_BENCH_PLAIN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace gradclip::bench {

// REQUIRES, of both: memory aligned to 64 bytes, a multiple of 64 bytes long.

// The sum of all 8-byte words.
using ReadPass = uint64_t (*)(std::span<const std::byte> memory);
// Multiplies all floats in place.
using ScalePass = void (*)(std::span<std::byte> memory, float factor);

// For the instruction sets that this machine has; not empty.
std::vector<ReadPass> ReadPasses();
std::vector<ScalePass> ScalePasses();

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_PLAIN_H_
