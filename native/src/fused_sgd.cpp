#include "espalier/fused_sgd.h"

#include "fused_sgd_kernel.h"
#include "fused_step.h"

namespace {

esp_status check(const esp_sgd_options& o) {
  if (!esp::at_least_zero(o.learning_rate) || !esp::at_least_zero(o.momentum) ||
      !esp::at_least_zero(o.weight_decay) || !esp::at_least_zero(o.max_norm) ||
      !std::isfinite(static_cast<float>(o.dampening))) {
    return esp::fail(
        ESP_INVALID_ARGUMENT,
        "fused_sgd: learning rate %g, momentum %g, weight decay %g, max norm %g (finite, 0 or more), "
        "dampening %g (finite)",
        o.learning_rate, o.momentum, o.weight_decay, o.max_norm, o.dampening);
  }
  if (o.nesterov && !(o.momentum > 0 && o.dampening == 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_sgd: Nesterov needs momentum above 0 (%g) and dampening 0 (%g)", o.momentum,
                     o.dampening);
  }
  return ESP_OK;
}

esp_status check(int64_t index, const esp_sgd_tensor& t, const esp_sgd_options& options) {
  if (esp_status status = esp::check_step("fused_sgd", index, t)) return status;
  if (esp::elements(t) > 0 && options.momentum > 0 && t.momentum == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_sgd: tensor %lld has no momentum buffer, and momentum is not 0",
                     (long long)index);
  }
  return ESP_OK;
}

}  // namespace

esp_status esp_fused_sgd(esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options* options,
                         esp_sgd_result* result) {
  const esp::FusedSgdKernels* kernels;
  if (esp_status status = esp::select(esp::fused_sgd_variants, &kernels)) return status;
  if (options == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %s is NULL",
                     options == nullptr ? "options" : "result");
  }
  if (esp_status status = check(*options)) return status;
  if (esp_status status = esp::check_list("fused_sgd", tensors, count)) return status;
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = check(i, tensors[i], *options)) return status;
  }
  const size_t room = static_cast<size_t>(count) + 1;
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[room]);
  std::unique_ptr<esp::SgdCoefficients[]> coefficients(new (std::nothrow) esp::SgdCoefficients[room]);
  if (!first || !coefficients) {
    return esp::fail(ESP_OUT_OF_MEMORY, "fused_sgd: no memory for %lld tensors", (long long)count);
  }
  esp_sgd_result found;
  if (esp_status status = esp::measure("fused_sgd", tensors, count, *options, &found)) return status;
  if (!found.skipped) {
    const float factor = static_cast<float>(found.clip_factor);
    for (int64_t i = 0; i < count; i++) {
      coefficients[i] = {
          options->maximize ? -factor : factor,        static_cast<float>(options->weight_decay),
          static_cast<float>(options->momentum),       static_cast<float>(1 - options->dampening),
          static_cast<float>(-options->learning_rate), options->nesterov != 0};
    }
    esp::FusedStep<esp_sgd_tensor, esp::SgdCoefficients> step(*kernels, tensors, count, coefficients.get(),
                                                              16);
    found.non_finite_channels = step.run(first.get());
    for (int64_t i = 0; options->momentum > 0 && i < count; i++) tensors[i].first = 0;
  }
  *result = found;
  return ESP_OK;
}
