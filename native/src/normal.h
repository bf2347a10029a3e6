// Standard normal numbers by counter: what a processor and a device do alike for one block of random bits.
// Formulas in espalier/step_noise.h.
//
// Numerics: integers exact; log, sine and cosine by polynomials in double without fma, so that they have the
// same bits wherever they run, alone or in vectors.
#pragma once
#include <stdint.h>

#include "everywhere.h"
#include "logarithm.h"

#if defined(__CUDACC__)
#define ESP_SQRT sqrt
#else
#define ESP_SQRT __builtin_sqrt  // no <math.h> in what is compiled for an instruction set
#endif

namespace esp {

// Philox 4x32-10: what a round multiplies by, and what a key moves on by.
constexpr uint32_t philox_a = 0xD2511F53u, philox_b = 0xCD9E8D57u;
constexpr uint32_t philox_key_a = 0x9E3779B9u, philox_key_b = 0xBB67AE85u;
constexpr int philox_rounds = 10;
// The upper half of the counter: a stream of its own.
constexpr uint32_t noise_stream = 1;

// cos and sin of 2 pi v, 0 <= v < 1, within 1e-15: an eighth of a turn either side of the nearest quarter.
ESP_INLINED_EVERYWHERE void turn(double v, double* cosine, double* sine) {
  const double quarter = (4 * v + 0x1.8p52) - 0x1.8p52;  // the nearest integer, 0 .. 4
  const double x = (4 * v - quarter) * 0x1.921fb54442d18p+0;
  const double s = x * x;
  double p = -1.0 / 1307674368000.0;  // Taylor: x is at most pi / 4
  p = p * s + 1.0 / 6227020800.0;
  p = p * s - 1.0 / 39916800.0;
  p = p * s + 1.0 / 362880.0;
  p = p * s - 1.0 / 5040.0;
  p = p * s + 1.0 / 120.0;
  p = p * s - 1.0 / 6.0;
  const double sin_x = x + x * (s * p);
  double q = 1.0 / 20922789888000.0;
  q = q * s - 1.0 / 87178291200.0;
  q = q * s + 1.0 / 479001600.0;
  q = q * s - 1.0 / 3628800.0;
  q = q * s + 1.0 / 40320.0;
  q = q * s - 1.0 / 720.0;
  q = q * s + 1.0 / 24.0;
  const double cos_x = 1 - s * (0.5 - s * q);
  const int quarters = static_cast<int>(quarter) & 3;
  const double c = (quarters & 1) != 0 ? sin_x : cos_x, d = (quarters & 1) != 0 ? cos_x : sin_x;
  *cosine = quarters == 1 || quarters == 2 ? -c : c;
  *sine = quarters >= 2 ? -d : d;
}

// 53 bits of two words.
ESP_INLINED_EVERYWHERE double fraction(uint32_t high, uint32_t low) {
  return static_cast<double>(uint64_t{high} << 21 | low >> 11) * 0x1p-53;
}

// The two numbers of a block, times sigma; u in (0, 1], because the logarithm of 0 does not exist.
ESP_INLINED_EVERYWHERE void normal_pair(double u, double v, double sigma, float* first, float* second) {
  double cosine, sine;
  turn(v, &cosine, &sine);
  const double radius = sigma * ESP_SQRT(-2 * logarithm(u));
  *first = static_cast<float>(radius * cosine);
  *second = static_cast<float>(radius * sine);
}

}  // namespace esp
