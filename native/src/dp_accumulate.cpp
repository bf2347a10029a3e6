#include "espalier/dp_accumulate.h"

#include <cmath>
#include <memory>
#include <new>

#include "arguments.h"
#include "dp_accumulate_kernel.h"
#include "espalier/gradient_norm.h"
#include "thread_pool.h"

esp_status esp_dp_accumulate(const esp_dp_tensor* tensors, int64_t count, double bound, int32_t* clipped) {
  const esp::DpAccumulateKernels* kernels;
  if (esp_status status = esp::select(esp::dp_accumulate_variants, &kernels)) return status;
  if (esp_status status = esp::check_list("dp_accumulate", tensors, count)) return status;
  if (clipped == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "dp_accumulate: clipped is NULL");
  if (!(bound > 0 && std::isfinite(bound))) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "dp_accumulate: the bound is %g; a finite number above 0 is needed", bound);
  }
  std::unique_ptr<esp_gradient[]> gradients(new (std::nothrow) esp_gradient[static_cast<size_t>(count) + 1]);
  if (!gradients)
    return esp::fail(ESP_OUT_OF_MEMORY, "dp_accumulate: no memory for %lld tensors", (long long)count);
  for (int64_t t = 0; t < count; t++) {
    if (esp_status status = esp::check_tensor("dp_accumulate", t, tensors[t].sum, tensors[t].n, ESP_F32))
      return status;
    gradients[t] = {tensors[t].gradient, nullptr, nullptr, tensors[t].n, ESP_F32};
  }
  esp_gradient_norm_result found;
  if (esp_status status = esp_gradient_norm(gradients.get(), count, &found)) return status;
  *clipped = found.norm <= bound ? 0 : 1;
  // A margin for the roundings of factor and products, so that they cannot exceed the bound. NaN gives NaN.
  const float factor =
      *clipped ? static_cast<float>(bound / (found.non_finite ? NAN : found.norm) * (1 - 0x1p-21)) : 1.0f;
  for (int64_t t = 0; t < count; t++) {
    const esp_dp_tensor& tensor = tensors[t];
    esp::for_pieces(tensor.n, [&](int64_t first, int64_t n) {
      kernels->add(tensor.sum + first, tensor.gradient + first, factor, n);
    });
  }
  return ESP_OK;
}
