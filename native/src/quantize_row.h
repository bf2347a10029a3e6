// The training grid on 16 lanes: integers -127 .. 127, zero point 0, q = rint(x * (1 / scale)), half to even.
#pragma once
#include "simd/simd.h"

namespace {

struct Grid {
  f32x16 scale, inverse;  // inverse = 1 / scale rounded to F32
};

// The clamped integers as floats, and which were in range before the clamp. A NaN gives -127 and is not in range.
ESP_INLINE f32x16 to_grid(f32x16 x, const Grid& grid, mask16* pass) {
  const f32x16 low = set1(-127.0f), high = set1(127.0f);
  const f32x16 q = rint(x * grid.inverse);
  *pass = (low <= q) & (q <= high);
  return min(max(q, low), high);
}

// Adding +0 turns the -0 that small negative numbers round to into +0, as arithmetic on integers would.
ESP_INLINE f32x16 from_grid(f32x16 q, const Grid& grid) { return (q + set1(0.0f)) * grid.scale; }

}  // namespace
