// The grids of a window, 16 columns at a time.
#pragma once
#include "fake_quantize_kernel.h"
#include "simd/simd.h"

namespace {

// One grid a column, or one for all, kept in registers; of the n columns from i on, n <= 16. by() is what
// grid_position takes. (Not one struct of vectors: GCC 12 copies such a struct through the stack in every
// turn.)
struct PerColumn {
  const float* scales;
  const float* bys;
  const float* zeros;
  ESP_MEMBER PerColumn(const esp::GridScale& s, bool divide)
      : scales(s.scale), bys(divide ? s.scale : s.inverse), zeros(s.zero) {}
  ESP_MEMBER f32x16 scale(int64_t i, int64_t n) const { return load_up_to(scales + i, n); }
  // 1 where there is no column, so that dividing stays harmless.
  ESP_MEMBER f32x16 by(int64_t i, int64_t n) const {
    return n == 16 ? load(bys + i) : select(first_lanes(n), load_n(bys + i, n), set1(1.0f));
  }
  ESP_MEMBER f32x16 zero(int64_t i, int64_t n) const { return load_up_to(zeros + i, n); }
};
struct Constant {
  f32x16 scale_lanes, by_lanes, zero_lanes;
  ESP_MEMBER Constant(const esp::Grid& g, bool divide)
      : scale_lanes(set1(g.scale)), by_lanes(set1(divide ? g.scale : g.inverse)), zero_lanes(set1(g.zero)) {}
  ESP_MEMBER Constant(const esp::GridScale& s, bool divide)
      : Constant({*s.scale, *s.inverse, *s.zero}, divide) {}
  ESP_MEMBER f32x16 scale(int64_t, int64_t) const { return scale_lanes; }
  ESP_MEMBER f32x16 by(int64_t, int64_t) const { return by_lanes; }
  ESP_MEMBER f32x16 zero(int64_t, int64_t) const { return zero_lanes; }
};

}  // namespace
