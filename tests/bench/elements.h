// What made-up gradients are of: elements, and the shapes of a real model. Pure functions.
#ifndef GRADCLIP_TESTS_BENCH_ELEMENTS_H_
#define GRADCLIP_TESTS_BENCH_ELEMENTS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gradclip/dtype.h"

namespace gradclip::bench {

// Random elements of magnitude [0.5, 1) and either sign. REQUIRES: bytes.size() is a multiple of 8.
void FillElements(DType dtype, std::span<std::byte> bytes);

// The 148 tensors of GPT-2 124M.
std::vector<std::vector<int64_t>> Gpt2Shapes();

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_ELEMENTS_H_
