// The digits that exact sums are kept in, for hosts and devices alike: where a double goes among
// them. Pure functions.
#ifndef GRADCLIP_SERVER_BACKEND_FIXED_POINT_H_
#define GRADCLIP_SERVER_BACKEND_FIXED_POINT_H_

#include <cstdint>

#include "server/backend/host_device.h"

namespace gradclip {

// Digit i of 32 bits stands for digit * 2^(32 i - 2240); digits are kept in 64 bits so that carries
// can wait. The range covers every sum of gradients: squares of F64 reach from 2^-2148 to 2^2048,
// and fewer than 2^64 of them are added.
inline constexpr int kFixedPointDigits = 140;
inline constexpr int kFixedPointLowestBit = -2240;
// A double's 53 bits spread over three digits from the lowest one on, so up to two past the end.
inline constexpr int kFixedPointSlots = kFixedPointDigits + 3;

// What a finite number adds to digits[first], [first + 1] and [first + 2]: less than 2^32 to each.
struct FixedPointTerm {
  int first = 0;
  uint64_t low = 0, middle = 0, high = 0;  // all 0 where nothing is left of the number
  bool too_large = false;                  // 2^2240 or more
};

// value * 2^exponent, `bits` being those of value >= 0. Bits below 2^-2240 are dropped. Bits are
// taken apart by hand: nothing here depends on the floating-point environment.
GRADCLIP_HOST_DEVICE inline FixedPointTerm SplitIntoDigits(uint64_t bits, int exponent) {
  constexpr uint64_t kFractionMask = 0x000fffffffffffff;
  FixedPointTerm term;
  const auto biased = static_cast<int64_t>(bits >> 52);
  uint64_t mantissa = bits & kFractionMask;
  if (biased != 0) mantissa |= kFractionMask + 1;
  if (mantissa == 0) return term;

  // Where the mantissa's last bit goes, counted from the lowest one kept.
  int64_t place = (biased > 1 ? biased : 1) - 1075 + exponent - kFixedPointLowestBit;
  if (place < 0) {
    mantissa = place <= -53 ? 0 : mantissa >> -place;
    if (mantissa == 0) return term;
    place = 0;
  }
  const int64_t beyond = int64_t{32} * kFixedPointDigits - place;  // bits from there to the end
  if (beyond < 64 && (beyond <= 0 || mantissa >> beyond != 0)) {
    term.too_large = true;
    return term;
  }
  const int shift = static_cast<int>(place % 32);
  const uint64_t low = mantissa << shift;
  term.first = static_cast<int>(place / 32);
  term.low = low & 0xffffffff;
  term.middle = low >> 32;
  term.high = shift == 0 ? 0 : mantissa >> (64 - shift);
  return term;
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_BACKEND_FIXED_POINT_H_
