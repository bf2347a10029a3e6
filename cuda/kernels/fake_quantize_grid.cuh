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
  float scale, by, zero;  // by: the scale where it divides, else its reciprocal
};
__device__ __forceinline__ Grid grid_from(float scale, float zero, bool divide) {
  return {scale, divide ? scale : 1.0f / scale, zero};
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

__device__ __forceinline__ float clamped(float position, const Rule& rule) {
  const float raised = position > rule.qmin ? position : rule.qmin;  // NaN becomes qmin
  return raised < rule.qmax ? raised : rule.qmax;
}

}  // namespace
