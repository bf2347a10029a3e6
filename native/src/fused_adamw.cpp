#include "espalier/fused_adamw.h"

#include "fused_adamw_arguments.h"

namespace {

struct Adamw {
  using Tensor = esp_adamw_tensor;
  using Options = esp_adamw_options;
  using Coefficients = esp::AdamwCoefficients;
  static constexpr const char* name = "fused_adamw";
  static constexpr int64_t state_bytes = 24;

  static esp_status check(const Options& options) { return esp::check_adamw_options(options); }
  static esp_status check(int64_t index, const Tensor& tensor, const Options&) {
    if (esp_status status = esp::check_moments(index, tensor)) return status;
    if (tensor.step < 0) {
      return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: tensor %lld has done %lld steps", (long long)index,
                       (long long)tensor.step);
    }
    return ESP_OK;
  }
  // Tensors mostly have done the same number of steps.
  static void prepare(const Options& options, double clip_factor, const Tensor* tensors, int64_t count,
                      Coefficients* coefficients) {
    for (int64_t i = 0; i < count; i++) {
      if (i > 0 && tensors[i].step == tensors[i - 1].step) {
        coefficients[i] = coefficients[i - 1];
      } else {
        const esp::AdamwCorrection correction =
            esp::adamw_correction(options.learning_rate, options.beta1, options.beta2, tensors[i].step + 1);
        coefficients[i] = esp::adamw_coefficients(options, clip_factor, correction);
      }
    }
  }
  static void advance(const Options&, Tensor& tensor) { tensor.step++; }
};

}  // namespace

esp_status esp_fused_adamw(esp_adamw_tensor* tensors, int64_t count, const esp_adamw_options* options,
                           esp_step_result* result) {
  return esp::run_step<Adamw>(esp::fused_adamw_variants, tensors, count, options, result);
}
