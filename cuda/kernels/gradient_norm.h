// What gradient_norm's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/gradient_norm.h"
#include "gradient_norm_order.h"

namespace esp {

// The table: tensors, then a chunk for each block of a tensor, in list order.
struct GradientChunk {
  int32_t tensor, block;
};

// The workspace: zeroed once.
struct GradientNormState {
  unsigned long long non_finite;
  uint32_t arrived, reserved;
  // double squares[chunks] follow
};

// What a step makes of the norm.
struct StepGuard {
  double norm, clip_factor;
  unsigned long long non_finite;
  float factor;     // clip_factor as F32
  int32_t skipped;  // 0, 1, or step_refused
};
constexpr int32_t step_refused = 2;  // there is no norm to clip by
struct GuardRule {
  double max_norm;  // 0: no clipping
  int32_t skip_non_finite;
  StepGuard* guard;  // nullptr: the norm is all that is asked for
};
esp_status launch_gradient_norm(const esp_cuda_plan& plan, const void* table, void* workspace,
                                esp_gradient_norm_result* result, const GuardRule& rule, void* stream);

// plan->operation
constexpr int gradient_norm_tensors = 0, gradient_norm_chunks = 1;

constexpr int gradient_norm_chunks_a_block = 16;  // half a warp each

}  // namespace esp
