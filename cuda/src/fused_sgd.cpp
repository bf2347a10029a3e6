#include "fused_sgd.h"

#include "fused_sgd_arguments.h"
#include "step_plan.h"

esp_status esp_cuda_fused_sgd_plan(const esp_sgd_tensor* tensors, int64_t count,
                                   const esp_sgd_options* options, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr || options == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %s is NULL", plan == nullptr ? "plan" : "options");
  }
  if (esp_status status = esp::check_sgd_options(*options)) return status;
  return plan_step(
      "fused_sgd", tensors, count, options->max_norm > 0 || options->skip_non_finite != 0,
      options->momentum > 0, 0, plan, table,
      [&](int64_t index, const esp_sgd_tensor& t) { return esp::check_momentum(index, t, *options); },
      [](const esp_sgd_tensor& t, esp::StepEntry& e) { e.state[0] = t.momentum; });
}
