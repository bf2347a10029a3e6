#pragma once
#include "cpu_features.h"
#include "espalier/fused_adamw.h"
#include "fused_step_kernel.h"

namespace esp {

struct AdamwCoefficients {
  float factor;        // the clip factor, negative where maximize
  float decay;         // 1 - learning rate * weight decay
  float beta1, rest1;  // and 1 - beta1
  float beta2, rest2;
  float root;  // 1 / sqrt(1 - beta2^t)
  float epsilon;
  float minus_rate;  // -learning rate / (1 - beta1^t)
  StepNoise noise;
};

using FusedAdamwKernels = StepKernels<esp_adamw_tensor, AdamwCoefficients>;

}  // namespace esp

ESP_DECLARE_VARIANTS(FusedAdamwKernels, fused_adamw)
