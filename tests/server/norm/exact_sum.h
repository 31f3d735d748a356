// A sum of integers times powers of two without any rounding, one bit a byte: slow, and plain
// enough to be believed. Not thread-safe.
#ifndef GRADCLIP_TESTS_SERVER_NORM_EXACT_SUM_H_
#define GRADCLIP_TESTS_SERVER_NORM_EXACT_SUM_H_

#include <cstdint>
#include <vector>

#include "server/backend/backend.h"

namespace gradclip {

class ExactSum {
 public:
  // Adds value * 2^exponent. REQUIRES: value is finite and >= 0, and the result >= 2^-2400.
  void Add(double value, int exponent = 0);
  // Adds |value| to the power of p. REQUIRES: p is 1 or 2.
  void AddPower(double value, int p);

  // The sum to nearest even: mantissa * 2^exponent with the given number of bits (0 for 0).
  struct Rounded {
    uint64_t mantissa;
    int exponent;
  };
  Rounded Round(int bits) const;
  // The sum to the power of 1 / p, good to 64 bits less two roundings.
  long double Root(int p) const;
  // What a norm must be to the bit: rounded to 53 bits once, then the root.
  double Norm(int p) const;

 private:
  static constexpr int kLowestBit = -2400;

  void AddInteger(unsigned __int128 value, int exponent);

  std::vector<uint8_t> bits_ = std::vector<uint8_t>(4800);
};

// Of all elements together.
ExactSum SumOfPowers(DType dtype, const std::byte* elements, size_t count, int p);

}  // namespace gradclip

#endif  // GRADCLIP_TESTS_SERVER_NORM_EXACT_SUM_H_
