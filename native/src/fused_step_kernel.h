// What the kernels of all fused optimizer steps are called with. Tensor is the operation's own struct; its
// fields weight, mask, gate, working_copy, scale, rows, cols, gradient, gradient_dtype, working_copy_type,
// channel and scale_given mean the same in each.
#pragma once
#include <stdint.h>

#include "espalier/working_copy.h"
#include "everywhere.h"

namespace esp {

// Elements start .. start + n of one tensor. The start is a multiple of 16 and so is the end, unless it is
// the end of the tensor: the bits of a range share no byte with another's.
struct StepRange {
  int64_t start, n;
};

// The noise of a tensor, part of an operation's coefficients: see espalier/step_noise.h.
struct StepNoise {
  double sigma;           // negative where maximize; 0: none
  uint64_t key, counter;  // of the tensor's first block
  float divisor;
};

template <class Tensor, class Coefficients>
struct StepKernels {
  // All of the step: where scales are to be found, the range is whole rows and each row is a channel.
  // `streaming` asks for non-temporal stores to an F32 copy (64-byte aligned, as rows are). Returns the rows
  // whose scale became NaN.
  int64_t (*step)(const Tensor& tensor, const Coefficients& c, const StepRange& range, bool streaming);
  // The update alone; raises scale[channel] to the absmax of the range's part of it, as bits: magnitudes are
  // ordered like integers, with infinity and then NaN on top. Where columns are channels, the range is whole
  // rows.
  void (*update)(const Tensor& tensor, const Coefficients& c, const StepRange& range);
  // Working copy and gate from the weights and the final scales.
  void (*quantize)(const Tensor& tensor, const StepRange& range, bool streaming);
};

// Static, so that no instruction set's copy is shared.

// The elements that share a scale, or that stand in a row.
template <class Tensor>
static inline int64_t row_length(const Tensor& tensor) {
  return tensor.channel == ESP_CHANNEL_TENSOR ? tensor.rows * tensor.cols : tensor.cols;
}

// The smallest number of rows that is a multiple of 16 elements.
static inline int64_t aligned_rows(int64_t cols) {
  const int64_t power = cols & -cols;
  return power >= 16 ? 1 : 16 / power;
}

// The scale of a channel from the bits of its absmax.
ESP_EVERYWHERE static inline float scale_of(int32_t absmax_bits) {
  if (absmax_bits >= 0x7f800000) return __builtin_nanf("");
  float absmax;
  __builtin_memcpy(&absmax, &absmax_bits, 4);
  const float scale = absmax / 127.0f;
  return scale > 0 && 1.0f / scale <= 3.40282347e+38f ? scale : 1.0f;
}

}  // namespace esp
