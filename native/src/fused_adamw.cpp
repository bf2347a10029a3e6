#include "espalier/fused_adamw.h"

#include "fused_adamw_kernel.h"
#include "fused_step.h"

namespace {

bool is_rate(double beta) {
  return beta >= 0 && static_cast<float>(beta) < 1;
}

esp_status check(const esp_adamw_options& o) {
  if (!esp::at_least_zero(o.learning_rate) || !esp::at_least_zero(o.weight_decay) ||
      !esp::at_least_zero(o.max_norm)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_adamw: learning rate %g, weight decay %g, max norm %g (finite, 0 or more)",
                     o.learning_rate, o.weight_decay, o.max_norm);
  }
  if (!is_rate(o.beta1) || !is_rate(o.beta2)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: beta1 %g, beta2 %g (0 or more, below 1)", o.beta1,
                     o.beta2);
  }
  if (!(esp::at_least_zero(o.epsilon) && static_cast<float>(o.epsilon) > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: epsilon %g (finite, above 0)", o.epsilon);
  }
  return ESP_OK;
}

esp_status check(int64_t index, const esp_adamw_tensor& t) {
  if (esp_status status = esp::check_step("fused_adamw", index, t)) return status;
  if (esp::elements(t) > 0 && (t.first_moment == nullptr || t.second_moment == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: tensor %lld has no %s moment", (long long)index,
                     t.first_moment == nullptr ? "first" : "second");
  }
  if (t.step < 0) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: tensor %lld has done %lld steps", (long long)index,
                     (long long)t.step);
  }
  return ESP_OK;
}

// For a tensor that has done `done` steps.
esp::AdamwCoefficients coefficients_of(const esp_adamw_options& o, double clip_factor, int64_t done) {
  const double t = static_cast<double>(done) + 1;
  esp::AdamwCoefficients c;
  c.factor = static_cast<float>(o.maximize ? -clip_factor : clip_factor);
  c.decay = static_cast<float>(1 - o.learning_rate * o.weight_decay);
  c.beta1 = static_cast<float>(o.beta1);
  c.rest1 = static_cast<float>(1 - o.beta1);
  c.beta2 = static_cast<float>(o.beta2);
  c.rest2 = static_cast<float>(1 - o.beta2);
  c.root = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, t)));
  c.epsilon = static_cast<float>(o.epsilon);
  c.minus_rate = static_cast<float>(-o.learning_rate / (1 - std::pow(o.beta1, t)));
  return c;
}

}  // namespace

esp_status esp_fused_adamw(esp_adamw_tensor* tensors, int64_t count, const esp_adamw_options* options,
                           esp_step_result* result) {
  const esp::FusedAdamwKernels* kernels;
  if (esp_status status = esp::select(esp::fused_adamw_variants, &kernels)) return status;
  if (options == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: %s is NULL",
                     options == nullptr ? "options" : "result");
  }
  if (esp_status status = check(*options)) return status;
  if (esp_status status = esp::check_list("fused_adamw", tensors, count)) return status;
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = check(i, tensors[i])) return status;
  }
  const size_t room = static_cast<size_t>(count) + 1;
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[room]);
  std::unique_ptr<esp::AdamwCoefficients[]> coefficients(new (std::nothrow) esp::AdamwCoefficients[room]);
  if (!first || !coefficients) {
    return esp::fail(ESP_OUT_OF_MEMORY, "fused_adamw: no memory for %lld tensors", (long long)count);
  }
  esp_step_result found;
  if (esp_status status = esp::measure("fused_adamw", tensors, count, *options, &found)) return status;
  if (!found.skipped) {
    // Tensors mostly have done the same number of steps.
    for (int64_t i = 0; i < count; i++) {
      coefficients[i] = i > 0 && tensors[i].step == tensors[i - 1].step
                            ? coefficients[i - 1]
                            : coefficients_of(*options, found.clip_factor, tensors[i].step);
    }
    esp::FusedStep<esp_adamw_tensor, esp::AdamwCoefficients> step(*kernels, tensors, count,
                                                                  coefficients.get(), 24);
    found.non_finite_channels = step.run(first.get());
    for (int64_t i = 0; i < count; i++) tensors[i].step++;
  }
  *result = found;
  return ESP_OK;
}
