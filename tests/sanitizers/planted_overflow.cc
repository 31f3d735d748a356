// Writes beyond an allocation, or overflows a signed number, on purpose. Built only under a
// sanitizer, where AddressSanitizer and UndefinedBehaviorSanitizer must report them.
//
//   planted_overflow heap             must be reported
//   planted_overflow signed           must be reported
//   planted_overflow heap guarded     stays within bounds: must not be
//   planted_overflow signed guarded   stays within range: must not be
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <string_view>

namespace gradclip {
namespace {

constexpr int kElements = 32;

// Both out of line, so that the report names them.
__attribute__((noinline)) void WriteElement(float* elements, int index) {
  elements[index] = 1;
}
__attribute__((noinline)) int32_t Add(int32_t a, int32_t b) {
  return a + b;
}

int OverflowHeap(bool guarded) {
  const auto elements = std::make_unique<float[]>(kElements);
  const int index = guarded ? kElements - 1 : kElements;
  WriteElement(elements.get(), index);
  std::printf("wrote element %d of %d: %g\n", index, kElements, double{elements[kElements - 1]});
  return 0;
}

int OverflowSigned(bool guarded) {
  const int32_t sum = Add(std::numeric_limits<int32_t>::max(), guarded ? 0 : 1);
  std::printf("sum %d\n", sum);
  return 0;
}

}  // namespace
}  // namespace gradclip

int main(int argc, char** argv) {
  const std::string_view kind = argc > 1 ? argv[1] : "";
  const bool guarded = argc > 2 && std::string_view(argv[2]) == "guarded";
  if (kind == "heap") {
    return gradclip::OverflowHeap(guarded);
  }
  if (kind == "signed") {
    return gradclip::OverflowSigned(guarded);
  }
  std::fprintf(stderr, "say heap or signed\n");
  return 2;
}
