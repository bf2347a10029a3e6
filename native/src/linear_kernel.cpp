// linear: the loops over the features of one row.
//
// Layout: n floats each. Numerics: dot adds in 64 sums by column, folded 32, 16 apart and then by reduce_add;
// squares are exact in double and added in 16 lanes; add is one fma, descend one to 0 and one to w, as
// backward and fused_sgd have them. Bytes: each input once, sum and w also written. Bulk: 64 elements a turn
// for dot, whose four chains hide the latency of fma, 16 for the others; tail: the same on zero-filled lanes.
#include "linear_kernel.h"

#include "add_scaled.h"
#include "simd/simd.h"

namespace {

float dot(const float* w, const float* x, int64_t n) {
  f32x16 a = set1(0.0f), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    a = fma(load(w + i), load(x + i), a);
    b = fma(load(w + i + 16), load(x + i + 16), b);
    c = fma(load(w + i + 32), load(x + i + 32), c);
    d = fma(load(w + i + 48), load(x + i + 48), d);
  }
  for (; i + 16 <= n; i += 16) a = fma(load(w + i), load(x + i), a);
  if (i < n) b = fma(load_n(w + i, n - i), load_n(x + i, n - i), b);
  return reduce_add((a + c) + (b + d));
}

double squares(const float* x, int64_t n) {
  f64x8 low = zero_f64(), high = low;
  for (int64_t i = 0; i < n; i += 16) {
    const f32x16 v = n - i >= 16 ? load(x + i) : load_n(x + i, n - i);
    const f64x8 a = low_f64(v), b = high_f64(v);
    low = fma(a, a, low);
    high = fma(b, b, high);
  }
  return reduce_add(low + high);
}

void descend(float* w, const float* x, float slope, float minus_rate, int64_t n) {
  // The product as backward adds it to 0: never -0.
  const f32x16 s = set1(slope), r = set1(minus_rate), zero = set1(0.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(w + i, fma(fma(s, load(x + i), zero), r, load(w + i)));
  if (i < n) store_n(w + i, fma(fma(s, load_n(x + i, n - i), zero), r, load_n(w + i, n - i)), n - i);
}

}  // namespace

namespace esp {
extern const LinearKernels ESP_VARIANT(linear);
const LinearKernels ESP_VARIANT(linear) = {dot, squares, add_scaled, descend};
}  // namespace esp
