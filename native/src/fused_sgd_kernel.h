#pragma once
#include "cpu_features.h"
#include "espalier/fused_sgd.h"
#include "fused_step_kernel.h"

namespace esp {

struct SgdCoefficients {
  float factor;  // the clip factor, negative where maximize
  float weight_decay;
  float momentum;
  float damped;  // 1 - dampening
  float minus_rate;
  bool nesterov;
  StepNoise noise;
};

using FusedSgdKernels = StepKernels<esp_sgd_tensor, SgdCoefficients>;

}  // namespace esp

ESP_DECLARE_VARIANTS(FusedSgdKernels, fused_sgd)
