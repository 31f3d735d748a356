#include "server/norm/fixed_point_sum.h"

#include <algorithm>
#include <bit>

namespace gradclip {
namespace {

constexpr uint64_t kDigitMask = 0xffffffff;
constexpr uint64_t kInfinityBits = 0x7ff0000000000000;

}  // namespace

void FixedPointSum::Add(double value, int exponent) {
  const uint64_t bits = std::bit_cast<uint64_t>(value) & INT64_MAX;
  if (bits >= kInfinityBits) {
    Saturate(bits == kInfinityBits ? State::kInfinite : State::kNan);
    return;
  }
  if (state_ != State::kFinite) return;
  const FixedPointTerm term = SplitIntoDigits(bits, exponent);
  if (term.too_large) {
    Saturate(State::kInfinite);
    return;
  }
  if ((term.low | term.middle | term.high) == 0) return;
  digits_[term.first] += term.low;
  digits_[term.first + 1] += term.middle;
  digits_[term.first + 2] += term.high;
  first_ = std::min(first_, term.first);
  end_ = std::max(end_, term.first + 3);
  if (++pending_ >= kMostPending) Settle();
}

void FixedPointSum::AddDigits(std::span<const uint64_t> digits, uint64_t additions) {
  FixedPointSum other;
  std::copy(digits.begin(), digits.end(), other.digits_.begin());
  other.first_ = 0;
  other.end_ = kSlots;
  other.pending_ = additions;
  other.Settle();
  Add(other);
}

void FixedPointSum::Add(const FixedPointSum& other) {
  if (other.state_ != State::kFinite) Saturate(other.state_);
  if (state_ != State::kFinite) return;
  for (int i = other.first_; i < other.end_; ++i) digits_[i] += other.digits_[i];
  first_ = std::min(first_, other.first_);
  end_ = std::max(end_, other.end_);
  // Both are below kMostPending, so no digit has overflowed.
  pending_ += other.pending_ + 1;
  if (pending_ >= kMostPending) Settle();
}

void FixedPointSum::Clear() {
  if (first_ < end_) std::fill(digits_.begin() + first_, digits_.begin() + end_, 0);
  first_ = kSlots;
  end_ = 0;
  pending_ = 0;
  state_ = State::kFinite;
}

void FixedPointSum::Settle() {
  if (pending_ != 0) {
    uint64_t carry = 0;
    for (int i = first_; i < kSlots && (i < end_ || carry != 0); ++i) {
      const uint64_t digit = digits_[i] + carry;
      digits_[i] = digit & kDigitMask;
      carry = digit >> 32;
      end_ = std::max(end_, i + 1);
    }
    pending_ = 0;
  }
  while (first_ < end_ && digits_[first_] == 0) ++first_;
  while (first_ < end_ && digits_[end_ - 1] == 0) --end_;
  if (first_ >= end_) {
    first_ = kSlots;
    end_ = 0;
  }
  if (end_ > kDigits) Saturate(State::kInfinite);
}

void FixedPointSum::Saturate(State state) {
  const State worst = std::max(state_, state);
  Clear();
  state_ = worst;
}

FixedPointSum::Rounded FixedPointSum::Round() const {
  if (first_ >= end_) return {0, 0};
  // The upper three digits hold at least 65 bits of the sum, 53 to keep and one to round by; of
  // those below it only matters whether one is set.
  unsigned __int128 window = 0;
  for (int i = end_ - 1; i >= end_ - 3; --i) window = window << 32 | (i >= 0 ? digits_[i] : 0);
  bool below = false;
  for (int i = first_; i < end_ - 3 && !below; ++i) below = digits_[i] != 0;

  const int width = 64 + std::bit_width(static_cast<uint64_t>(window >> 64));
  const int dropped = width - 53;
  auto mantissa = static_cast<uint64_t>(window >> dropped);
  const unsigned __int128 half = static_cast<unsigned __int128>(1) << (dropped - 1);
  const unsigned __int128 rest = window & (2 * half - 1);
  const bool up = rest > half || (rest == half && (below || mantissa % 2 == 1));
  if (up) ++mantissa;
  return {static_cast<double>(mantissa), 32 * (end_ - 3) + kLowestBit + dropped};
}

FixedPointSum FixedPointSum::Of(State state, int first_digit, std::span<const uint32_t> digits) {
  FixedPointSum sum;
  sum.state_ = state;
  if (!digits.empty()) {
    sum.first_ = first_digit;
    sum.end_ = first_digit + static_cast<int>(digits.size());
    std::copy(digits.begin(), digits.end(), sum.digits_.begin() + first_digit);
  }
  return sum;
}

}  // namespace gradclip
