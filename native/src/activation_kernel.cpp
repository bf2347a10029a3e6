// activation: 16 elements a turn, the tail on zero-filled lanes.
//
// Numerics: exponentials within 1 ulp (exp2_scaled), then a sum, a division and, of tanh, a difference. tanh
// below 0.625 is u + u^3 * P(u^2), P minimax for relative error, 2^-27.7, because the difference cancels
// there. Bytes: 4 read and 4 written an element; backward reads 4 more.
#include "activation_kernel.h"

#include "simd/math.h"

namespace {

// e^x, x in [-87, 88].
ESP_INLINE f32x16 exponential(f32x16 x) {
  constexpr double log2_e = 0x1.71547652b82fep+0;
  constexpr float high = static_cast<float>(log2_e), low = static_cast<float>(log2_e - high);
  return exp2_scaled<true>(x, set1(high), set1(low), set1(power_origin)).value;
}
// As max and min have it: a NaN in x stays.
ESP_INLINE f32x16 within(float low, f32x16 x, float high) {
  return min(set1(high), max(set1(low), x));
}

struct Relu {
  static ESP_MEMBER f32x16 value(f32x16 u, f32x16) { return max(set1(0.0f), u); }
  static ESP_MEMBER f32x16 back(f32x16 y, f32x16 s, f32x16) { return keep(set1(0.0f) < y, s); }
};
struct LeakyRelu {
  static ESP_MEMBER f32x16 value(f32x16 u, f32x16 alpha) { return select(u < set1(0.0f), alpha * u, u); }
  static ESP_MEMBER f32x16 back(f32x16 y, f32x16 s, f32x16 alpha) {
    return select(set1(0.0f) < y, s, alpha * s);
  }
};
struct Sigmoid {
  static ESP_MEMBER f32x16 value(f32x16 u, f32x16) {
    return set1(1.0f) / (set1(1.0f) + exponential(within(-87, set1(0.0f) - u, 88)));
  }
  static ESP_MEMBER f32x16 back(f32x16 y, f32x16 s, f32x16) { return s * (y * (set1(1.0f) - y)); }
};
struct Tanh {
  static ESP_MEMBER f32x16 value(f32x16 u, f32x16) {
    const f32x16 size = abs(u), square = u * u;
    f32x16 p = set1(-0x1.75e1ccp-8f);
    p = fma(p, square, set1(0x1.52269cp-6f));
    p = fma(p, square, set1(-0x1.b83c5ap-5f));
    p = fma(p, square, set1(0x1.110726p-3f));
    p = fma(p, square, set1(-0x1.555532p-2f));
    const f32x16 small = fma(u * square, p, u);
    const f32x16 power = exponential(within(0, size + size, 40));  // tanh(20) is 1
    const f32x16 large = set1(1.0f) - set1(2.0f) / (power + set1(1.0f));
    return select(size < set1(0.625f), small, select(u < set1(0.0f), set1(0.0f) - large, large));
  }
  static ESP_MEMBER f32x16 back(f32x16 y, f32x16 s, f32x16) { return s * fnma(y, y, set1(1.0f)); }
};

template <class Function>
void forward(float* values, float alpha, int64_t n) {
  const f32x16 a = set1(alpha);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(values + i, Function::value(load(values + i), a));
  if (i < n) store_n(values + i, Function::value(load_n(values + i, n - i), a), n - i);
}

template <class Function>
void backward(const float* y, float* s, float alpha, int64_t n) {
  const f32x16 a = set1(alpha);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(s + i, Function::back(load(y + i), load(s + i), a));
  if (i < n) store_n(s + i, Function::back(load_n(y + i, n - i), load_n(s + i, n - i), a), n - i);
}

}  // namespace

namespace esp {
extern const ActivationKernels ESP_VARIANT(activation);
const ActivationKernels ESP_VARIANT(activation) = {
    {forward<Relu>, forward<LeakyRelu>, forward<Sigmoid>, forward<Tanh>},
    {backward<Relu>, backward<LeakyRelu>, backward<Sigmoid>, backward<Tanh>}};
}  // namespace esp
