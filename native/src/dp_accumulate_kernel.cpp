// dp_accumulate: sum += factor * x over n floats. Numerics: one fma an element; the tail is the same on
// zero-filled lanes. Bytes: 8 read, 4 written an element, after the 4 that the norm reads.
#include "dp_accumulate_kernel.h"

#include "simd/simd.h"

namespace {

void add_scaled(float* sum, const float* x, float factor, int64_t n) {
  const f32x16 f = set1(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(sum + i, fma(f, load(x + i), load(sum + i)));
  if (i < n) store_n(sum + i, fma(f, load_n(x + i, n - i), load_n(sum + i, n - i)), n - i);
}

}  // namespace

namespace esp {
extern const DpAccumulateKernels ESP_VARIANT(dp_accumulate);
const DpAccumulateKernels ESP_VARIANT(dp_accumulate) = {add_scaled};
}  // namespace esp
