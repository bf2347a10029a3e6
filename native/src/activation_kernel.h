#pragma once
#include "cpu_features.h"
#include "espalier/activation.h"

namespace esp {

struct ActivationKernels {
  // By ESP_RELU and so on.
  void (*forward[4])(float* values, float alpha, int64_t n);
  void (*backward[4])(const float* y, float* s, float alpha, int64_t n);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(ActivationKernels, activation)
