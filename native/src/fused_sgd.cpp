#include "espalier/fused_sgd.h"

#include "fused_sgd_arguments.h"
#include "fused_sgd_kernel.h"
#include "fused_step.h"

esp_status esp_fused_sgd(esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options* options,
                         esp_step_result* result) {
  const esp::FusedSgdKernels* kernels;
  if (esp_status status = esp::select(esp::fused_sgd_variants, &kernels)) return status;
  if (options == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %s is NULL",
                     options == nullptr ? "options" : "result");
  }
  if (esp_status status = esp::check_sgd_options(*options)) return status;
  if (esp_status status = esp::check_list("fused_sgd", tensors, count)) return status;
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = esp::check_step("fused_sgd", i, tensors[i])) return status;
    if (esp_status status = esp::check_momentum(i, tensors[i], *options)) return status;
  }
  const size_t room = static_cast<size_t>(count) + 1;
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[room]);
  std::unique_ptr<esp::SgdCoefficients[]> coefficients(new (std::nothrow) esp::SgdCoefficients[room]);
  if (!first || !coefficients) {
    return esp::fail(ESP_OUT_OF_MEMORY, "fused_sgd: no memory for %lld tensors", (long long)count);
  }
  esp_step_result found;
  if (esp_status status = esp::measure("fused_sgd", tensors, count, *options, &found)) return status;
  if (!found.skipped) {
    const esp::SgdCoefficients same = esp::sgd_coefficients(*options, static_cast<float>(found.clip_factor));
    for (int64_t i = 0; i < count; i++) coefficients[i] = same;
    esp::number_noise(tensors, count, coefficients.get());
    esp::FusedStep<esp_sgd_tensor, esp::SgdCoefficients> step(*kernels, tensors, count, coefficients.get(),
                                                              16);
    found.non_finite_channels = step.run(first.get());
    for (int64_t i = 0; options->momentum > 0 && i < count; i++) tensors[i].first = 0;
  }
  *result = found;
  return ESP_OK;
}
