#pragma once
#include "cpu_features.h"
#include "espalier/gradient_norm.h"

namespace esp {

// One block of one tensor; starts at a multiple of 16 elements of the tensor, so that its bits start at a byte.
struct GradientBlock {
  const void* gradient;
  const uint8_t* mask;  // or nullptr
  const uint8_t* gate;  // or nullptr
  int64_t n;
};

struct GradientBlockSum {
  double squares;
  int64_t non_finite;
};

struct GradientNormKernels {
  GradientBlockSum (*sum)(esp_dtype dtype, const GradientBlock& block);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(GradientNormKernels, gradient_norm)
