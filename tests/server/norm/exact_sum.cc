#include "tests/server/norm/exact_sum.h"

#include <cmath>

#include "tests/server/backend/plain.h"

namespace gradclip {
namespace {

// value = mantissa * 2^exponent
uint64_t MantissaOf(double value, int& exponent) {
  const double fraction = std::frexp(std::fabs(value), &exponent);
  exponent -= 53;
  return static_cast<uint64_t>(std::ldexp(fraction, 53));
}

}  // namespace

void ExactSum::Add(double value, int exponent) {
  int own;
  const uint64_t mantissa = MantissaOf(value, own);
  AddInteger(mantissa, own + exponent);
}

void ExactSum::AddPower(double value, int p) {
  int exponent;
  const unsigned __int128 mantissa = MantissaOf(value, exponent);
  AddInteger(p == 2 ? mantissa * mantissa : mantissa, p * exponent);
}

void ExactSum::AddInteger(unsigned __int128 value, int exponent) {
  size_t place = exponent - kLowestBit;
  for (int carry = 0; value != 0 || carry != 0; value >>= 1, ++place) {
    const int sum = bits_.at(place) + static_cast<int>(value & 1) + carry;
    bits_.at(place) = sum % 2;
    carry = sum / 2;
  }
}

ExactSum::Rounded ExactSum::Round(int bits) const {
  int top = static_cast<int>(bits_.size()) - 1;
  while (top >= 0 && bits_[top] == 0) --top;
  if (top < 0) return {0, 0};
  const int last = top - bits + 1;
  const auto bit = [&](int place) { return place < 0 ? 0 : bits_[place]; };
  uint64_t mantissa = 0;
  for (int place = top; place >= last; --place) mantissa = mantissa << 1 | bit(place);
  bool below = false;
  for (int place = 0; place < last - 1; ++place) below = below || bits_[place] != 0;
  if (bit(last - 1) == 1 && (below || mantissa % 2 == 1)) ++mantissa;
  return {mantissa, last + kLowestBit};
}

long double ExactSum::Root(int p) const {
  const Rounded rounded = Round(62);
  const long double sum = std::ldexp(static_cast<long double>(rounded.mantissa), rounded.exponent);
  return p == 2 ? std::sqrt(sum) : sum;
}

double ExactSum::Norm(int p) const {
  Rounded rounded = Round(53);
  auto mantissa = static_cast<double>(rounded.mantissa);
  if (p == 1) return std::ldexp(mantissa, rounded.exponent);
  if (rounded.exponent % 2 != 0) {
    mantissa *= 2;
    rounded.exponent -= 1;
  }
  return std::ldexp(std::sqrt(mantissa), rounded.exponent / 2);
}

ExactSum SumOfPowers(DType dtype, const std::byte* elements, size_t count, int p) {
  ExactSum sum;
  for (size_t i = 0; i < count; ++i) {
    sum.AddPower(PlainValue(dtype, elements + i * ElementSize(dtype)), p);
  }
  return sum;
}

}  // namespace gradclip
