// What fused_sgd makes of its options, on a processor and on a device.
#pragma once
#include "fused_sgd_kernel.h"
#include "fused_step.h"

namespace esp {

inline esp_status check_sgd_options(const esp_sgd_options& o) {
  if (!at_least_zero(o.learning_rate) || !at_least_zero(o.momentum) || !at_least_zero(o.weight_decay) ||
      !at_least_zero(o.max_norm) || !std::isfinite(static_cast<float>(o.dampening))) {
    return fail(ESP_INVALID_ARGUMENT,
                "fused_sgd: learning rate %g, momentum %g, weight decay %g, max norm %g (finite, 0 or more), "
                "dampening %g (finite)",
                o.learning_rate, o.momentum, o.weight_decay, o.max_norm, o.dampening);
  }
  if (o.nesterov && !(o.momentum > 0 && o.dampening == 0)) {
    return fail(ESP_INVALID_ARGUMENT, "fused_sgd: Nesterov needs momentum above 0 (%g) and dampening 0 (%g)",
                o.momentum, o.dampening);
  }
  return check_noise("fused_sgd", o.noise);
}

inline esp_status check_momentum(int64_t index, const esp_sgd_tensor& t, const esp_sgd_options& options) {
  if (elements(t) > 0 && options.momentum > 0 && t.momentum == nullptr) {
    return fail(ESP_INVALID_ARGUMENT, "fused_sgd: tensor %lld has no momentum buffer, and momentum is not 0",
                (long long)index);
  }
  return ESP_OK;
}

inline SgdCoefficients sgd_coefficients(const esp_sgd_options& options, float clip_factor) {
  return {options.maximize ? -clip_factor : clip_factor,
          static_cast<float>(options.weight_decay),
          static_cast<float>(options.momentum),
          static_cast<float>(1 - options.dampening),
          static_cast<float>(-options.learning_rate),
          options.nesterov != 0,
          step_noise(options.noise, options.maximize != 0)};
}

}  // namespace esp
