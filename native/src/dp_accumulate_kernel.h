#pragma once
#include "cpu_features.h"
#include "espalier/dp_accumulate.h"

namespace esp {

struct DpAccumulateKernels {
  // Adds noise to n elements, the first of which is the first of block `counter`, and divides.
  void (*noise)(float* sum, int64_t n, uint64_t key, uint64_t counter, double sigma, float divisor);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(DpAccumulateKernels, dp_accumulate)
