// An exact sum of non-negative doubles times powers of two. Addition is that of integers, so it is
// associative and commutative, and the sum is rounded once, when it is read. A value type of about
// 1.2 KB; not thread-safe.
#ifndef GRADCLIP_SERVER_NORM_FIXED_POINT_SUM_H_
#define GRADCLIP_SERVER_NORM_FIXED_POINT_SUM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "server/backend/fixed_point.h"

namespace gradclip {

// Digits are as server/backend/fixed_point.h says. A sum of 2^2240 or more counts as infinite.
class FixedPointSum {
 public:
  static constexpr int kDigits = kFixedPointDigits;
  static constexpr int kLowestBit = kFixedPointLowestBit;

  // Not part of the sum's digits, but of its value. NaN wins over infinity, both over any digits.
  enum class State : uint8_t { kFinite, kInfinite, kNan };

  // mantissa * 2^exponent, mantissa = 0 or in [2^52, 2^53].
  struct Rounded {
    double mantissa;
    int exponent;
  };

  // Adds value * 2^exponent. REQUIRES: value >= 0, infinite or NaN. Bits below 2^-2240 are dropped.
  void Add(double value, int exponent);
  void Add(const FixedPointSum& other);
  // Adds what `additions` of finite values have left in digits elsewhere. REQUIRES:
  // kFixedPointSlots of them; additions < 2^30.
  void AddDigits(std::span<const uint64_t> digits, uint64_t additions);
  // As constructed. Costs time only for the digits that were used.
  void Clear();

  State state() const { return state_; }

  // The sum to nearest even. REQUIRES: Settle() since the last Add(), and state() is kFinite.
  Rounded Round() const;

  // Settles carries: afterwards every digit is below 2^32, the used range has no zero digit at
  // either end, and equal sums are in equal states.
  void Settle();

  // The used digits, lowest first, and the place of the first one. REQUIRES: as Round().
  std::span<const uint64_t> digits() const {
    if (first_ >= end_) return {};
    return {digits_.data() + first_, static_cast<size_t>(end_ - first_)};
  }
  int first_digit() const { return first_ < end_ ? first_ : 0; }

  // What digits(), first_digit() and state() were taken from. REQUIRES: they are such.
  static FixedPointSum Of(State state, int first_digit, std::span<const uint32_t> digits);

 private:
  static constexpr int kSlots = kFixedPointSlots;
  // Each addition adds less than 2^32 to a digit: 2^30 of them leave room to spare in 64 bits.
  static constexpr uint64_t kMostPending = uint64_t{1} << 30;

  void Saturate(State state);

  std::array<uint64_t, kSlots> digits_ = {};
  int first_ = kSlots;  // digits outside [first_, end_) are 0
  int end_ = 0;
  uint64_t pending_ = 0;  // each digit is below (pending_ + 1) * 2^32
  State state_ = State::kFinite;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NORM_FIXED_POINT_SUM_H_
