#include "espalier/fused_sgd.h"

#include "fused_sgd_arguments.h"

namespace {

struct Sgd {
  using Tensor = esp_sgd_tensor;
  using Options = esp_sgd_options;
  using Coefficients = esp::SgdCoefficients;
  static constexpr const char* name = "fused_sgd";
  static constexpr int64_t state_bytes = 16;

  static esp_status check(const Options& options) { return esp::check_sgd_options(options); }
  static esp_status check(int64_t index, const Tensor& tensor, const Options& options) {
    return esp::check_momentum(index, tensor, options);
  }
  static void prepare(const Options& options, double clip_factor, const Tensor*, int64_t count,
                      Coefficients* coefficients) {
    const Coefficients same = esp::sgd_coefficients(options, static_cast<float>(clip_factor));
    for (int64_t i = 0; i < count; i++) coefficients[i] = same;
  }
  static void advance(const Options& options, Tensor& tensor) {
    if (options.momentum > 0) tensor.first = 0;
  }
};

}  // namespace

esp_status esp_fused_sgd(esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options* options,
                         esp_step_result* result) {
  return esp::run_step<Sgd>(esp::fused_sgd_variants, tensors, count, options, result);
}
