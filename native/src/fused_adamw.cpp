#include "espalier/fused_adamw.h"

#include "fused_adamw_arguments.h"

namespace {

esp_status check(int64_t index, const esp_adamw_tensor& t) {
  if (esp_status status = esp::check_step("fused_adamw", index, t)) return status;
  if (esp_status status = esp::check_moments(index, t)) return status;
  if (t.step < 0) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: tensor %lld has done %lld steps", (long long)index,
                     (long long)t.step);
  }
  return ESP_OK;
}

// For a tensor that has done `done` steps.
esp::AdamwCoefficients coefficients_of(const esp_adamw_options& o, double clip_factor, int64_t done) {
  return esp::adamw_coefficients(o, clip_factor,
                                 esp::adamw_correction(o.learning_rate, o.beta1, o.beta2, done + 1));
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
  if (esp_status status = esp::check_adamw_options(*options)) return status;
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
    esp::number_noise(tensors, count, coefficients.get());
    esp::FusedStep<esp_adamw_tensor, esp::AdamwCoefficients> step(*kernels, tensors, count,
                                                                  coefficients.get(), 24);
    found.non_finite_channels = step.run(first.get());
    for (int64_t i = 0; i < count; i++) tensors[i].step++;
  }
  *result = found;
  return ESP_OK;
}
