// The rule of fake_quantize on 16 lanes, for every kernel that puts values on the grid.
#pragma once
#include "simd/simd.h"

namespace {

// The place of x on the grid before it is clamped: an integer, an infinity or NaN. `by` is the scale where it divides,
// else the scale's reciprocal.
ESP_INLINE f32x16 grid_position(f32x16 x, f32x16 by, f32x16 zero, bool divide) {
  return rint(divide ? x / by : x * by) + zero;
}
// The scales of 16 lanes together.
struct GridLanes {
  f32x16 scale, inverse, zero;
};
ESP_INLINE f32x16 grid_position(f32x16 x, const GridLanes& s, bool divide) {
  return grid_position(x, divide ? s.scale : s.inverse, s.zero, divide);
}
// max takes its second operand where the first is NaN: NaN becomes qmin.
ESP_INLINE f32x16 clamp_position(f32x16 position, f32x16 qmin, f32x16 qmax) { return min(max(position, qmin), qmax); }
ESP_INLINE mask16 gate_of(f32x16 position, f32x16 qmin, f32x16 qmax) { return (qmin <= position) & (position <= qmax); }
ESP_INLINE f32x16 grid_value(f32x16 q, f32x16 scale, f32x16 zero) { return (q - zero) * scale; }
ESP_INLINE f32x16 grid_value(f32x16 q, const GridLanes& s) { return grid_value(q, s.scale, s.zero); }

}  // namespace
