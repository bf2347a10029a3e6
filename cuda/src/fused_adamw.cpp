#include "fused_adamw.h"

#include "fused_adamw_arguments.h"
#include "step_plan.h"

esp_status esp_cuda_fused_adamw_plan(const esp_adamw_tensor* tensors, int64_t count,
                                     const esp_adamw_options* options, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr || options == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: %s is NULL", plan == nullptr ? "plan" : "options");
  }
  if (esp_status status = esp::check_adamw_options(*options)) return status;
  return plan_step(
      "fused_adamw", tensors, count, options->max_norm > 0 || options->skip_non_finite != 0, true,
      static_cast<int64_t>(sizeof(esp::AdamwCorrection)), plan, table,
      [](int64_t index, const esp_adamw_tensor& t) { return esp::check_moments(index, t); },
      [](const esp_adamw_tensor& t, esp::StepEntry& e) {
        e.state[0] = t.first_moment;
        e.state[1] = t.second_moment;
      });
}
