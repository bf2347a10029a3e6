// Powers of two and logarithms, the same bits on every instruction set.
#pragma once
#include "logarithm.h"
#include "simd/simd.h"

namespace {

// x * scale as k + r with k an integer and |r| <= 1/2, and 2^(k + bias + r) from it.
struct Power {
  f32x16 value;     // within 1 ulp; +0 where k + bias < -126; NaN for a NaN
  f32x16 exponent;  // power_zero + k + bias + 127, exact
  f32x16 fraction;  // r, within 2^-25
};

// A float whose last place counts ones, as those of all sums near it do: adding it to a number rounds that to
// an integer in the low bits of the sum, where a shift makes the exponent of a float of them. This one makes
// the exponent 0: zero.
constexpr float power_zero = 0x1.8p23f;
// What exp2_scaled takes for a bias: add the bias, an integer, to it.
constexpr float power_origin = power_zero + 127;
// |x * scale|, |bias| and their sum must stay below this.
constexpr float power_limit = 0x1p21f;

// 2^(x * scale + bias), where scale is given in two floats and origin is power_origin + bias. Because the
// integer part is taken off x * scale in one rounding, nothing is lost to a large |x| whose power a bias
// brings back to size. Coefficients: minimax for relative error on [-1/2, 1/2], 2^-28.
// `normal` says that no sum of the three is below -126, which saves a maximum.
template <bool normal>
ESP_INLINE_IN_REGISTERS Power exp2_scaled(f32x16 x, f32x16 scale_high, f32x16 scale_low, f32x16 origin) {
  Power power;
  power.exponent = fma(x, scale_high, origin);
  f32x16 r = fma(x, scale_high, origin - power.exponent);
  r = fma(x, scale_low, r);
  power.fraction = r;
  f32x16 p = set1(0x1.4172b4p-13f);
  p = fma(p, r, set1(0x1.5f0976p-10f));
  p = fma(p, r, set1(0x1.3b2ddap-7f));
  p = fma(p, r, set1(0x1.c6af7ap-5f));
  p = fma(p, r, set1(0x1.ebfbdcp-3f));
  p = fma(p, r, set1(0x1.62e43p-1f));
  p = fma(p, r, set1(1.0f));
  const f32x16 exponent = normal ? power.exponent : max(power.exponent, set1(power_zero));
  power.value = p * float_of_bits(shift_left<23>(bits_of(exponent)));
  return power;
}

// Natural logarithms of 16 doubles.
ESP_INLINE_IN_REGISTERS void log16(const double* x, double* y) {
  for (int i = 0; i < 16; i++) y[i] = esp::logarithm(x[i]);
}

}  // namespace
