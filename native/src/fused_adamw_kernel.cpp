// fused_adamw: the update of 16 elements; formula in espalier/fused_adamw.h, everything around it in
// fused_step_lanes.h.
//
// Numerics: F32, a root and a division an element, both correctly rounded everywhere. Bytes a weight: 16
// read, 12 written, and the working copy (4 for F32) past the cache: memory takes longer than root and
// division.
#include "fused_adamw_kernel.h"

#include "fused_step_lanes.h"

namespace {

// +0 in the place of denormals; a NaN stays.
ESP_INLINE f32x16 keep_normal(mask16 kept, f32x16 moment) {
  return keep(kept & ~(abs(moment) < set1(0x1p-126f)), moment);
}

template <class Source, bool first>
struct AdamwUpdate {
  Source gradient;
  float* weight;
  float* first_moment;
  float* second_moment;
  f32x16 decay, beta1, rest1, beta2, rest2, root, epsilon, minus_rate;

  AdamwUpdate(const esp_adamw_tensor& tensor, const esp::AdamwCoefficients& c)
      : gradient(tensor, c),
        weight(tensor.weight),
        first_moment(tensor.first_moment),
        second_moment(tensor.second_moment),
        decay(set1(c.decay)),
        beta1(set1(c.beta1)),
        rest1(set1(c.rest1)),
        beta2(set1(c.beta2)),
        rest2(set1(c.rest2)),
        root(set1(c.root)),
        epsilon(set1(c.epsilon)),
        minus_rate(set1(c.minus_rate)) {}

  template <bool whole>
  __attribute__((always_inline)) i32x16 lanes(int64_t i, int64_t n) {
    prefetch(weight + i);
    mask16 kept;
    const f32x16 g = gradient.template lanes<whole>(i, n, &kept);
    f32x16 m = set1(0.0f), v = set1(0.0f);
    if (!first) {
      prefetch(first_moment + i);
      prefetch(second_moment + i);
      m = load_lanes<whole>(first_moment + i, n) * beta1;
      v = load_lanes<whole>(second_moment + i, n) * beta2;
    }
    m = fma(g, rest1, m);
    v = fma(g * rest2, g, v);
    const f32x16 ratio = m / fma(sqrt(v), root, epsilon);
    const f32x16 w = keep(kept, fma(ratio, minus_rate, load_lanes<whole>(weight + i, n) * decay));
    store_lanes<whole>(first_moment + i, keep_normal(kept, m), n);
    store_lanes<whole>(second_moment + i, keep_normal(kept, v), n);
    store_lanes<whole>(weight + i, w, n);
    return magnitude_bits(w);
  }
};

struct AdamwRule {
  using Tensor = esp_adamw_tensor;
  using Coefficients = esp::AdamwCoefficients;

  template <class Source, class Also>
  static UpdateSpan<AdamwRule, Also> span(const Tensor& tensor, const Coefficients&) {
    return tensor.step == 0 ? update_span<AdamwRule, AdamwUpdate<Source, true>, Also>
                            : update_span<AdamwRule, AdamwUpdate<Source, false>, Also>;
  }
};

}  // namespace

namespace esp {
extern const FusedAdamwKernels ESP_VARIANT(fused_adamw);
const FusedAdamwKernels ESP_VARIANT(fused_adamw) = kernels_of<AdamwRule>;
}  // namespace esp
