#include "gradient_norm.h"

#include <cstring>

#include "arguments.h"

esp_status esp_cuda_gradient_norm_plan(const esp_gradient* gradients, int64_t count, esp_cuda_plan* plan,
                                       void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "gradient_norm: plan is NULL");
  if (esp_status status = esp::check_list("gradient_norm", gradients, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "gradient_norm: %lld tensors", static_cast<long long>(count));
  int64_t chunks = 0;
  for (int64_t t = 0; t < count; t++) {
    const esp_gradient& g = gradients[t];
    if (esp_status status = esp::check_tensor("gradient_norm", t, g.gradient, g.n, g.dtype)) return status;
    chunks += g.n / esp::gradient_norm_block + (g.n % esp::gradient_norm_block != 0);
  }
  if (chunks > INT32_MAX) {  // 1.7e13 elements
    return esp::fail(ESP_UNSUPPORTED, "gradient_norm: %lld blocks of %d elements",
                     static_cast<long long>(chunks), esp::gradient_norm_block);
  }
  const int64_t tensor_bytes = count * static_cast<int64_t>(sizeof(esp_gradient));
  *plan = {
      tensor_bytes + chunks * static_cast<int64_t>(sizeof(esp::GradientChunk)),
      static_cast<int64_t>(sizeof(esp::GradientNormState)) + chunks * static_cast<int64_t>(sizeof(double)),
      {count, chunks}};
  if (table == nullptr) return ESP_OK;
  if (count > 0) std::memcpy(table, gradients, static_cast<size_t>(tensor_bytes));
  auto* chunk = reinterpret_cast<esp::GradientChunk*>(static_cast<char*>(table) + tensor_bytes);
  for (int64_t t = 0; t < count; t++) {
    int32_t block = 0;
    for (int64_t i = 0; i < gradients[t].n; i += esp::gradient_norm_block)
      *chunk++ = {static_cast<int32_t>(t), block++};
  }
  return ESP_OK;
}
