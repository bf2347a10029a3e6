// What fake_quantize_clip's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/fake_quantize_clip.h"
#include "fake_quantize_sums.h"

namespace esp {

struct ClipEntry {
  const void* x;
  float* scale;
  int32_t* zero_point;
  const float* running;  // minima, then maxima of its channels
  SumOrder order;
  int64_t channel;   // its first among all, in the workspace
  int64_t partials;  // of the first chunk, in the workspace
  esp_dtype dtype;
  int32_t group;  // sum_group
};

static_assert(sizeof(ClipEntry) % 8 == 0, "parts follow");

// plan->operation, beside what SumList says.
constexpr int clip_steps = sum_tensors + 1;         // of the quantizer
constexpr int clip_all_channels = sum_tensors + 2;  // of all tensors

constexpr int clip_ratios = 4;  // that are tried at once

// The best of a channel so far. The workspace: one for each channel, then the sums of the chunks.
struct ClipBest {
  double error;
  float scale;
  int32_t zero_point;
};
using ClipErrors = Sums<clip_ratios>;

}  // namespace esp
