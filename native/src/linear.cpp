#include "espalier/linear.h"

#include <cmath>
#include <cstring>

#include "arguments.h"
#include "linear_kernel.h"
#include "thread_pool.h"

namespace {

esp_status check(const char* function, const esp_linear* model, const void* x, int64_t rows,
                 const void* outputs) {
  if (model == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s of NULL", function);
  const int64_t n = model->features, m = model->outputs;
  if (n < 0 || m < 0 || rows < 0 || (n > 0 && (m > esp::max_elements / n || rows > esp::max_elements / n)) ||
      (m > 0 && rows > esp::max_elements / m)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s of %lld outputs, %lld features, %lld rows", function,
                     static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(rows));
  }
  if ((m * n > 0 && model->weight == nullptr) || (m > 0 && model->bias == nullptr) ||
      (rows * n > 0 && x == nullptr) || (rows * m > 0 && outputs == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s with a tensor that is NULL", function);
  }
  return ESP_OK;
}

// Runs body(c) for each output; in parallel where rows * outputs * features floats are worth it.
template <class Body>
void for_outputs(const esp_linear& model, int64_t rows, const Body& body) {
  if (rows * model.features < esp::parallel_bytes / 4 / (model.outputs > 0 ? model.outputs : 1)) {
    for (int64_t c = 0; c < model.outputs; c++) body(c);
  } else {
    esp::parallel_for(model.outputs, body);
  }
}

}  // namespace

esp_status esp_linear_forward(const esp_linear* model, const float* x, int64_t rows, float* z) {
  const esp::LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("forward", model, x, rows, z)) return status;
  const esp_linear m = *model;
  for_outputs(m, rows, [&](int64_t c) {
    for (int64_t i = 0; i < rows; i++) {
      z[i * m.outputs + c] =
          kernels->dot(m.weight + c * m.features, x + i * m.features, m.features) + m.bias[c];
    }
  });
  return ESP_OK;
}

esp_status esp_linear_backward(const esp_linear* gradient, const float* x, int64_t rows, const float* s,
                               double bound, int64_t* clipped) {
  const esp::LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("backward", gradient, x, rows, s)) return status;
  if (!(bound >= 0 && bound <= 1.7976931348623157e308)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: the bound is %g; a finite number of 0 or more is needed",
                     bound);
  }
  const esp_linear g = *gradient;
  if (g.outputs == 0) {
    if (clipped != nullptr) *clipped = 0;
    return ESP_OK;
  }
  if (g.features > 0) std::memset(g.weight, 0, static_cast<size_t>(g.outputs * g.features) * sizeof(float));
  std::memset(g.bias, 0, static_cast<size_t>(g.outputs) * sizeof(float));
  int64_t count = 0;
  for (int64_t first = 0; first < rows;) {
    // The factors of some rows at a time, so that no memory is needed for those of all.
    float factors[64];
    const int64_t part = rows - first < 64 ? rows - first : 64;
    for (int64_t i = 0; i < part; i++) {
      factors[i] = 1;
      if (bound == 0) continue;
      const double norm = std::sqrt(kernels->squares(s + (first + i) * g.outputs, g.outputs) *
                                    (1 + kernels->squares(x + (first + i) * g.features, g.features)));
      if (norm <= bound) continue;
      // A margin for the roundings of factor, slope and products, so that they cannot exceed the bound. NaN
      // gives NaN.
      factors[i] = static_cast<float>(bound / norm * (1 - 0x1p-21));
      count++;
    }
    for_outputs(g, part, [&](int64_t c) {
      for (int64_t i = 0; i < part; i++) {
        const float slope = factors[i] * s[(first + i) * g.outputs + c];
        g.bias[c] += slope;
        kernels->add(g.weight + c * g.features, x + (first + i) * g.features, slope, g.features);
      }
    });
    first += part;
  }
  if (clipped != nullptr) *clipped = count;
  return ESP_OK;
}

esp_status esp_linear_descend(const esp_linear* model, const float* x, const float* s, double rate) {
  const esp::LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("descend", model, x, 1, s)) return status;
  const float minus_rate = static_cast<float>(-rate);
  if (!(rate >= 0 && std::isfinite(minus_rate))) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: the rate is %g; a finite F32 of 0 or more is needed",
                     rate);
  }
  const esp_linear m = *model;
  for_outputs(m, 1, [&](int64_t c) {
    kernels->descend(m.weight + c * m.features, x, s[c], minus_rate, m.features);
    m.bias[c] = std::fma(0.0f + s[c], minus_rate, m.bias[c]);
  });
  return ESP_OK;
}
