// The natural logarithm in double, by polynomial and without fma: the same bits on processors and devices,
// alone or in vectors.
#pragma once
#include <stdint.h>
#include <string.h>

#include "everywhere.h"

namespace esp {

// Of a positive normal double, within 1e-15 relative or 1e-16; rubbish, but no trap,
// for others. log m = 2 atanh((m - 1) / (m + 1)), m within a factor of sqrt(2) around 1.
ESP_INLINED_EVERYWHERE double logarithm(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  // 1024 + exponent, m >= 1/sqrt(2)
  const uint64_t above = bits - 0x3fe6a09e667f3bcdull + (uint64_t{1024} << 52);
  const uint64_t exponent_bits = above >> 52;
  const uint64_t m_bits = bits - (exponent_bits << 52) + (uint64_t{1024} << 52);
  const uint64_t e_bits = exponent_bits | 0x4330000000000000ull;  // 2^52 + the integer
  double m, e;
  memcpy(&m, &m_bits, 8);
  memcpy(&e, &e_bits, 8);
  e -= 0x1p52 + 1024;
  const double f = (m - 1) / (m + 1), s = f * f;
  double p = 1.0 / 19;
  p = p * s + 1.0 / 17;
  p = p * s + 1.0 / 15;
  p = p * s + 1.0 / 13;
  p = p * s + 1.0 / 11;
  p = p * s + 1.0 / 9;
  p = p * s + 1.0 / 7;
  p = p * s + 1.0 / 5;
  p = p * s + 1.0 / 3;
  return e * 0x1.62e42fefa39efp-1 + 2 * (f + f * (s * p));
}

}  // namespace esp
