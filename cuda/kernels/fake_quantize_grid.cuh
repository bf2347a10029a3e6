// The rule of fake_quantize for one element, for every kernel that puts values on the grid.
#pragma once
#include "fake_quantize_scale.h"
#include "kernel.cuh"

namespace {

struct Rule {
  float qmin, qmax;
  bool divide;
  __device__ explicit Rule(const esp_quantizer& q)
      : qmin(static_cast<float>(q.qmin)),
        qmax(static_cast<float>(q.qmax)),
        divide(q.rounding == ESP_ROUND_DIVIDE) {}
};
struct Grid {
  float scale, by, zero;  // by: 1 / scale, or where it divides 1 / (scale * power_for(scale))
};
// A power of two that keeps a scale and its reciprocal far from where floats end.
__device__ __forceinline__ float power_for(float scale) {
  return scale > 0x1p64f ? 0x1p-64f : scale < 0x1p-64f ? 0x1p64f : 1.0f;
}
__device__ __forceinline__ Grid grid_from(float scale, float zero, bool divide) {
  return {scale, 1.0f / (divide ? scale * power_for(scale) : scale), zero};
}
__device__ __forceinline__ Grid grid_at(const float* scale, const int32_t* zero_point, int64_t channel,
                                        bool divide) {
  ESP_GLOBAL(scale);
  float zero = 0.0f;
  if (zero_point != nullptr) {
    ESP_GLOBAL(zero_point);
    zero = static_cast<float>(zero_point[channel]);
  }
  return grid_from(scale[channel], zero, divide);
}

// x * (1 / scale), or x / scale as IEEE 754 rounds it; that where it is at most 2^12, and else, and for NaN, what is off
// every grid too. An estimate within an ulp becomes the quotient by one of Markstein's corrections ("Computation of
// elementary functions on the IBM RISC System/6000 processor", IBM J. Res. Dev. 34, 1990), given a rounded reciprocal;
// the correction before makes the estimate that good.
__device__ __forceinline__ float scaled(float x, const Grid& grid, const Rule& rule) {
  if (!rule.divide) return x * grid.by;
  const float power = power_for(grid.scale), divisor = grid.scale * power, most = divisor * 0x1p12f;
  const float dividend = fminf(fmaxf(x * power, -most), most);
  float quotient = dividend * grid.by;
#pragma unroll
  for (int corrections = 0; corrections < 2; corrections++)
    quotient = fmaf(fmaf(-divisor, quotient, dividend), grid.by, quotient);
  return quotient;
}

// A position is no -0: it is a sum with a zero point, which is not. NaN becomes qmin.
__device__ __forceinline__ float clamped(float position, const Rule& rule) {
  return fminf(fmaxf(position, rule.qmin), rule.qmax);
}

}  // namespace
