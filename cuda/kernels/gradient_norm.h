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

// plan->operation
constexpr int gradient_norm_tensors = 0, gradient_norm_chunks = 1;

constexpr int gradient_norm_chunks_a_block = 16;  // half a warp each

}  // namespace esp
