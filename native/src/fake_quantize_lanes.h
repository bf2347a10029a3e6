// The rule of fake_quantize on 16 lanes, for every kernel that puts values on the grid.
#pragma once
#include "simd/simd.h"

namespace {

struct GridLanes {
  f32x16 scale, inverse, zero;
};

// The place of x on the grid before it is clamped: an integer, an infinity or NaN.
ESP_INLINE f32x16 grid_position(f32x16 x, const GridLanes& s, bool divide) {
  return rint(divide ? x / s.scale : x * s.inverse) + s.zero;
}
// max takes its second operand where the first is NaN: NaN becomes qmin.
ESP_INLINE f32x16 clamp_position(f32x16 position, f32x16 qmin, f32x16 qmax) { return min(max(position, qmin), qmax); }
ESP_INLINE mask16 gate_of(f32x16 position, f32x16 qmin, f32x16 qmax) { return (qmin <= position) & (position <= qmax); }
ESP_INLINE f32x16 grid_value(f32x16 q, const GridLanes& s) { return (q - s.zero) * s.scale; }

}  // namespace
