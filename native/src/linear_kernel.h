#pragma once
#include "cpu_features.h"
#include "espalier/linear.h"

namespace esp {

struct LinearKernels {
  float (*dot)(const float* w, const float* x, int64_t n);
  double (*squares)(const float* x, int64_t n);                      // sum of x^2
  void (*add)(float* sum, const float* x, float factor, int64_t n);  // sum += factor * x
  void (*descend)(float* w, const float* x, float slope, float minus_rate,
                  int64_t n);  // w += minus_rate * (slope * x)
};

}  // namespace esp

ESP_DECLARE_VARIANTS(LinearKernels, linear)
