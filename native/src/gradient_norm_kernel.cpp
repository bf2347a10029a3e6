// gradient_norm, one block: sum of (mask * gate * g)^2 in double and a count of what is not finite.
//
// Layout: n elements of F32, BF16 or F16, bits beside them. Numerics: a float squared is exact in double; 16 lanes of
// double each add up their own column, then a fixed tree. Bytes: n times the element size, plus n/8 a bit field.
// Bulk: 16 elements a turn; tail: the same on zero-filled lanes.
#include "gradient_norm_kernel.h"

#include "simd/simd.h"

namespace {

template <class T>
esp::GradientBlockSum sum_block(const esp::GradientBlock& block) {
  const T* g = static_cast<const T*>(block.gradient);
  const f32x16 largest = set1(3.40282347e+38f);
  f64x8 low = zero_f64(), high = zero_f64();
  int64_t finite = 0;
  const int64_t bulk = block.n & ~int64_t{15};
  for (int64_t i = 0; i < block.n; i += 16) {
    const bool whole = i < bulk;
    const int64_t n = whole ? 16 : block.n - i;
    f32x16 x = whole ? load(g + i) : load_n(g + i, n);
    prefetch(g + i);
    uint16_t pass = 0xffff;
    if (block.mask != nullptr) {
      pass = static_cast<uint16_t>(pass & (whole ? load_bits(block.mask, i) : load_bits_n(block.mask, i, n)));
    }
    if (block.gate != nullptr) {
      pass = static_cast<uint16_t>(pass & (whole ? load_bits(block.gate, i) : load_bits_n(block.gate, i, n)));
    }
    if (pass != 0xffff) x = keep(mask_of(pass), x);
    finite += count(abs(x) <= largest);
    const f64x8 a = low_f64(x), b = high_f64(x);
    low = fma(a, a, low);
    high = fma(b, b, high);
  }
  double lanes[8];
  store(lanes, low + high);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return {lanes[0], ((block.n + 15) & ~int64_t{15}) - finite};
}

esp::GradientBlockSum sum(esp_dtype dtype, const esp::GradientBlock& block) {
  switch (dtype) {
    case ESP_BF16:
      return sum_block<bf16>(block);
    case ESP_F16:
      return sum_block<f16>(block);
    default:
      return sum_block<float>(block);
  }
}

}  // namespace

namespace esp {
extern const GradientNormKernels ESP_VARIANT(gradient_norm);
const GradientNormKernels ESP_VARIANT(gradient_norm) = {sum};
}  // namespace esp
