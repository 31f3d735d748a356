// Powers of quotients for norms other than 1, 2 and infinity. Pure functions, to be called in the
// default floating-point environment.
#ifndef GRADCLIP_SERVER_NORM_POWER_H_
#define GRADCLIP_SERVER_NORM_POWER_H_

#include <cfloat>
#include <cmath>

namespace gradclip {

// (x / y)^p, also where x / y alone would overflow or underflow: with p = 0.01 the quotient of
// 1e-308 and 1e308 still counts. The relative error is a few ulp times max(1, p). REQUIRES: x, y
// and p are finite and > 0.
inline double PowerOfQuotient(double x, double y, double p) {
  const double quotient = x / y;
  // Beyond the range of double even the square is 0 or infinity, and in parts a large power would
  // be infinity times 0.
  if ((quotient >= DBL_MIN && quotient <= DBL_MAX) || p > 2) return std::pow(quotient, p);
  int x_exponent, y_exponent;
  const double fractions = std::frexp(x, &x_exponent) / std::frexp(y, &y_exponent);
  return std::pow(fractions, p) * std::exp2((x_exponent - y_exponent) * p);
}

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_NORM_POWER_H_
