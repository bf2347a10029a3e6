// gradient_norm, one block: sum of (mask * gate * g)^2 in double and a count of what is not finite.
//
// Layout: n elements of F32, BF16 or F16, bits beside them. Numerics: a float squared is exact in double; 16
// lanes of double each add up their own column, then a fixed tree. Non-finite entries are counted only where
// the sum shows that there are some. Bytes: n times the element size, plus n/8 a bit field. Bulk: 16 elements
// a turn; tail: the same on zero-filled lanes.
#include "gradient_norm_kernel.h"

#include "simd/simd.h"

namespace {

// 16 elements from i on, +0 where mask or gate hide them; n of them where they are not whole.
template <class T, bool whole>
ESP_INLINE f32x16 seen(const esp::GradientBlock& block, int64_t i, int64_t n) {
  const T* g = static_cast<const T*>(block.gradient) + i;
  f32x16 x = whole ? load(g) : load_n(g, n);
  if (block.mask != nullptr)
    x = keep(mask_of(whole ? load_bits(block.mask, i) : load_bits_n(block.mask, i, n)), x);
  if (block.gate != nullptr)
    x = keep(mask_of(whole ? load_bits(block.gate, i) : load_bits_n(block.gate, i, n)), x);
  return x;
}

ESP_INLINE void add_squares(f32x16 x, f64x8* low, f64x8* high) {
  const f64x8 a = low_f64(x), b = high_f64(x);
  *low = fma(a, a, *low);
  *high = fma(b, b, *high);
}

template <class T>
int64_t count_non_finite(const esp::GradientBlock& block) {
  const f32x16 largest = set1(largest_float);
  int64_t finite = 0;
  for (int64_t i = 0; i < block.n; i += 16) {
    const int64_t n = block.n - i;
    finite += count(abs(n >= 16 ? seen<T, true>(block, i, 16) : seen<T, false>(block, i, n)) <= largest);
  }
  return ((block.n + 15) & ~int64_t{15}) - finite;
}

template <class T>
esp::GradientBlockSum sum_block(const esp::GradientBlock& given) {
  const esp::GradientBlock block = given;
  const int64_t bulk = block.n & ~int64_t{15};
  f64x8 low = zero_f64(), high = zero_f64();
  for (int64_t i = 0; i < bulk; i += 16) {
    prefetch(static_cast<const T*>(block.gradient) + i);
    add_squares(seen<T, true>(block, i, 16), &low, &high);
  }
  if (bulk < block.n) add_squares(seen<T, false>(block, bulk, block.n - bulk), &low, &high);
  double lanes[8];
  store(lanes, low + high);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  // The squares of all floats there are stay finite in double: a sum that is not tells of an element that is
  // not.
  return {lanes[0], lanes[0] <= 1.7976931348623157e308 ? 0 : count_non_finite<T>(block)};
}

esp::GradientBlockSum sum(esp_dtype dtype, const esp::GradientBlock& block) {
  return with_dtype(dtype, [&](auto element) { return sum_block<decltype(element)>(block); });
}

}  // namespace

namespace esp {
extern const GradientNormKernels ESP_VARIANT(gradient_norm);
const GradientNormKernels ESP_VARIANT(gradient_norm) = {sum};
}  // namespace esp
