// What backends must compute, written again as plainly as can be and sharing no code with them:
// element by element, 16-bit formats by their definition and by search. Pure functions.
#ifndef GRADCLIP_TESTS_SERVER_BACKEND_PLAIN_H_
#define GRADCLIP_TESTS_SERVER_BACKEND_PLAIN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "server/backend/backend.h"

namespace gradclip {

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                       DType::kFloat64};

using Bytes = std::vector<std::byte>;

// Elements of these values; each must be one that the dtype has.
Bytes Elements(DType dtype, std::span<const double> values);

// Finite elements of all sorts: mostly within a few powers of two of 1, some over the whole range,
// some subnormal, some +0 and -0.
Bytes RandomElements(DType dtype, size_t count, uint64_t seed);

// A copy of the bytes that starts at an odd address. Heap-allocated to the byte, so that a
// sanitizer sees what is read past its end.
class Unaligned {
 public:
  explicit Unaligned(std::span<const std::byte> bytes);
  std::byte* data() { return bytes_.data() + 1; }

 private:
  Bytes bytes_;
};

double PlainValue(DType dtype, const std::byte* element);

// The nearest 16-bit element, ties to the even one, found among all of them.
uint16_t NearestHalf(DType dtype, double value);

// The lanes after a call of Backend::AddToLanes.
Lanes PlainLanes(DType dtype, LaneTerm term, const std::byte* elements, size_t count,
                 size_t first_lane, Lanes lanes);

// The bytes after a call of Backend::Scale.
Bytes PlainScale(DType dtype, Bytes elements, double coefficient);

// The same bits, all NaN counting as one.
bool SameBits(double a, double b);
// The first element in which two runs differ, all NaN counting as one; empty where none does.
std::string Difference(DType dtype, const std::byte* a, const std::byte* b, size_t count);

// The names of the backends that can run here: what the suites are instantiated for. A processor
// without AVX-512 runs them for the others; that is all that "usable" leaves out.
std::vector<std::string> UsableBackends();
// "cpu/avx2" as a test's name may have it.
std::string TestName(const std::string& backend);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_BACKEND_PLAIN_H_
