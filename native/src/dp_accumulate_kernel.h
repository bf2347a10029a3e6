#pragma once
#include "cpu_features.h"
#include "espalier/dp_accumulate.h"

namespace esp {

struct DpAccumulateKernels {
  void (*add)(float* sum, const float* gradient, float factor, int64_t n);  // sum += factor * gradient
};

}  // namespace esp

ESP_DECLARE_VARIANTS(DpAccumulateKernels, dp_accumulate)
