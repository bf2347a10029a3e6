// What fused_adamw makes of its options, on a processor and on a device.
#pragma once
#include "everywhere.h"
#include "fused_adamw_kernel.h"
#include "fused_step.h"

namespace esp {

inline bool is_rate(double beta) {
  return beta >= 0 && static_cast<float>(beta) < 1;
}

inline esp_status check_adamw_options(const esp_adamw_options& o) {
  if (!at_least_zero(o.learning_rate) || !at_least_zero(o.weight_decay) || !at_least_zero(o.max_norm)) {
    return fail(ESP_INVALID_ARGUMENT,
                "fused_adamw: learning rate %g, weight decay %g, max norm %g (finite, 0 or more)",
                o.learning_rate, o.weight_decay, o.max_norm);
  }
  if (!is_rate(o.beta1) || !is_rate(o.beta2)) {
    return fail(ESP_INVALID_ARGUMENT, "fused_adamw: beta1 %g, beta2 %g (0 or more, below 1)", o.beta1,
                o.beta2);
  }
  if (!(at_least_zero(o.epsilon) && static_cast<float>(o.epsilon) > 0)) {
    return fail(ESP_INVALID_ARGUMENT, "fused_adamw: epsilon %g (finite, above 0)", o.epsilon);
  }
  return check_noise("fused_adamw", o.noise);
}

inline esp_status check_moments(int64_t index, const esp_adamw_tensor& t) {
  if (elements(t) > 0 && (t.first_moment == nullptr || t.second_moment == nullptr)) {
    return fail(ESP_INVALID_ARGUMENT, "fused_adamw: tensor %lld has no %s moment", (long long)index,
                t.first_moment == nullptr ? "first" : "second");
  }
  return ESP_OK;
}

// base^exponent by squaring: products alone, which round alike everywhere. exponent >= 0.
ESP_EVERYWHERE inline double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 != 0) result *= base;
    base *= base;
  }
  return result;
}

// What the number of steps makes of a step: for the t-th, from 1 on.
struct AdamwCorrection {
  float root;        // 1 / sqrt(1 - beta2^t)
  float minus_rate;  // -learning rate / (1 - beta1^t)
};
ESP_EVERYWHERE inline AdamwCorrection adamw_correction(double learning_rate, double beta1, double beta2,
                                                       int64_t t) {
  return {static_cast<float>(1 / sqrt(1 - power(beta2, t))),
          static_cast<float>(-learning_rate / (1 - power(beta1, t)))};
}

inline AdamwCoefficients adamw_coefficients(const esp_adamw_options& o, double clip_factor,
                                            AdamwCorrection correction) {
  AdamwCoefficients c;
  c.factor = static_cast<float>(o.maximize ? -clip_factor : clip_factor);
  c.decay = static_cast<float>(1 - o.learning_rate * o.weight_decay);
  c.beta1 = static_cast<float>(o.beta1);
  c.rest1 = static_cast<float>(1 - o.beta1);
  c.beta2 = static_cast<float>(o.beta2);
  c.rest2 = static_cast<float>(1 - o.beta2);
  c.root = correction.root;
  c.epsilon = static_cast<float>(o.epsilon);
  c.minus_rate = correction.minus_rate;
  c.noise = step_noise(o.noise, o.maximize != 0);
  return c;
}

}  // namespace esp
