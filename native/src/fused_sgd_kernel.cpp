// fused_sgd: the update of 16 elements; formula in espalier/fused_sgd.h, everything around it in
// fused_step_lanes.h.
//
// Numerics: one fma a term, as in the header. Bytes a weight: 12 read, 8 written, and the working copy (4 for
// F32) past the cache.
#include "fused_sgd_kernel.h"

#include "fused_step_lanes.h"

namespace {

enum class Momentum { none, first, running };

template <class Source, Momentum kind>
struct SgdUpdate {
  Source gradient;
  float* weight;
  float* momentum;
  f32x16 weight_decay, rate_of_momentum, damped, minus_rate;
  bool decays, nesterov;

  SgdUpdate(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c)
      : gradient(tensor, c),
        weight(tensor.weight),
        momentum(tensor.momentum),
        weight_decay(set1(c.weight_decay)),
        rate_of_momentum(set1(c.momentum)),
        damped(set1(c.damped)),
        minus_rate(set1(c.minus_rate)),
        decays(c.weight_decay != 0),
        nesterov(c.nesterov) {}

  template <bool whole>
  __attribute__((always_inline)) i32x16 lanes(int64_t i, int64_t n) {
    prefetch(weight + i);
    mask16 kept;
    f32x16 d = gradient.template lanes<whole>(i, n, &kept);
    f32x16 w = load_lanes<whole>(weight + i, n);
    if (decays) d = fma(w, weight_decay, d);
    if (kind != Momentum::none) {
      f32x16 b = d;
      if (kind == Momentum::running) {
        prefetch(momentum + i);
        b = fma(d, damped, load_lanes<whole>(momentum + i, n) * rate_of_momentum);
      }
      d = nesterov ? fma(b, rate_of_momentum, d) : b;
      store_lanes<whole>(momentum + i, keep(kept, b), n);
    }
    w = keep(kept, fma(d, minus_rate, w));
    store_lanes<whole>(weight + i, w, n);
    return magnitude_bits(w);
  }
};

struct SgdRule {
  using Tensor = esp_sgd_tensor;
  using Coefficients = esp::SgdCoefficients;

  template <class Source, class Also>
  static UpdateSpan<SgdRule, Also> span(const Tensor& tensor, const Coefficients& c) {
    if (c.momentum == 0) return update_span<SgdRule, SgdUpdate<Source, Momentum::none>, Also>;
    return tensor.first ? update_span<SgdRule, SgdUpdate<Source, Momentum::first>, Also>
                        : update_span<SgdRule, SgdUpdate<Source, Momentum::running>, Also>;
  }
};

}  // namespace

namespace esp {
extern const FusedSgdKernels ESP_VARIANT(fused_sgd);
const FusedSgdKernels ESP_VARIANT(fused_sgd) = kernels_of<SgdRule>;
}  // namespace esp
