// What fake_quantize_scale_gradient's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/fake_quantize_scale_gradient.h"
#include "fake_quantize_order.h"

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
  int32_t group;  // rows: segments of a chunk, rounded up to a power of two
  int32_t reserved;
};

// A piece of a tensor's work; what piece `index` is depends on the list that the part is in.
struct GradientPart {
  int32_t tensor, index;
};

// The table: quantizer, tensors, then the lists of parts in the order of these. plan->operation[list] is the
// length of each.
enum GradientList {
  gradient_rows,     // chunks of rows: as many as a block has threads for
  gradient_columns,  // a chunk of a matrix, a pack of columns a lane
  gradient_sums,     // channels whose chunks are several: one a warp
  gradient_lists,
  gradient_tensors = gradient_lists,  // plan->operation only
};

constexpr int gradient_threads = 256, gradient_warps = gradient_threads / 32;
static_assert(chunk_rows == gradient_warps * segment_rows, "a warp has a segment of a matrix");

constexpr int gradient_pack = 4;                          // elements that a thread loads at once
constexpr int gradient_team = sum_lanes / gradient_pack;  // threads of a segment of rows
constexpr int gradient_strip = 32 * gradient_pack;        // columns of a matrix that a block adds up
// Chunks of rows that a block adds up.
ESP_EVERYWHERE inline int gradient_slots(int32_t group) {
  return gradient_threads / gradient_team / group;
}

struct GradientHead {
  esp_quantizer quantizer;
  int32_t reserved[6];
};
static_assert(sizeof(GradientHead) % 16 == 0 && sizeof(GradientEntry) % 8 == 0, "tensors and parts follow");

// The workspace: zeroed once. States of the tensors follow, then the sums of the chunks.
struct GradientCall {
  uint32_t arrived, reserved[3];
};
struct GradientState {
  unsigned long long bad, reserved;  // bad: INT64_MAX - channel; 0: none
};
struct alignas(16) GradientSums {
  double by_scale, by_zero_point;
};

}  // namespace esp
