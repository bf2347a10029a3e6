#include "espalier/activation.h"

#include "activation_kernel.h"
#include "arguments.h"
#include "thread_pool.h"

namespace {

esp_status check(const char* function, int32_t kind, float alpha, bool is_null, int64_t n) {
  if (kind < ESP_RELU || kind > ESP_TANH) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "activation: %s of kind %d; relu (0), leaky relu (1), sigmoid (2) or tanh (3) is needed",
                     function, kind);
  }
  if (kind == ESP_LEAKY_RELU && !(alpha >= 0 && alpha <= 3.40282347e+38f)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "activation: alpha is %g; a finite number of 0 or more is needed",
                     static_cast<double>(alpha));
  }
  if (n < 0 || n > esp::max_elements || (n > 0 && is_null)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "activation: %s of %lld elements%s", function,
                     static_cast<long long>(n), is_null ? " at NULL" : "");
  }
  return ESP_OK;
}

}  // namespace

esp_status esp_activation_forward(int32_t kind, float alpha, float* values, int64_t n) {
  const esp::ActivationKernels* kernels;
  if (esp_status status = esp::select(esp::activation_variants, &kernels)) return status;
  if (esp_status status = check("forward", kind, alpha, values == nullptr, n)) return status;
  esp::for_pieces(n,
                  [&](int64_t first, int64_t part) { kernels->forward[kind](values + first, alpha, part); });
  return ESP_OK;
}

esp_status esp_activation_backward(int32_t kind, float alpha, const float* y, float* s, int64_t n) {
  const esp::ActivationKernels* kernels;
  if (esp_status status = esp::select(esp::activation_variants, &kernels)) return status;
  if (esp_status status = check("backward", kind, alpha, y == nullptr || s == nullptr, n)) return status;
  esp::for_pieces(
      n, [&](int64_t first, int64_t part) { kernels->backward[kind](y + first, s + first, alpha, part); });
  return ESP_OK;
}
