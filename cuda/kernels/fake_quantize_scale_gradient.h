// What fake_quantize_scale_gradient's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/fake_quantize_scale_gradient.h"
#include "fake_quantize_sums.h"

namespace esp {

struct GradientEntry {
  const void* x;
  const void* grad_y;
  void* grad_x;
  const float* scale;
  const int32_t* zero_point;
  float* grad_scale;
  float* grad_zero_point;
  SumOrder order;
  int64_t partials;  // of the first chunk, in the workspace
  float factor;
  esp_dtype dtype;
  int32_t group;  // sum_group
  int32_t reserved;
};

static_assert(sizeof(GradientEntry) % 8 == 0, "parts follow");

// The workspace: zeroed once. States of the tensors follow, then the sums of the chunks.
struct GradientCall {
  uint32_t arrived, reserved[3];
};
struct GradientState {
  unsigned long long bad, reserved;  // bad: INT64_MAX - channel; 0: none
};
using GradientSums = Sums<2>;
constexpr int by_scale = 0, by_zero_point = 1;

}  // namespace esp
