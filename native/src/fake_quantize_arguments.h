// Checks of quantizers and shapes that every device makes.
#pragma once
#include <cmath>

#include "arguments.h"
#include "espalier/fake_quantize.h"
#include "fake_quantize_scale.h"

namespace esp {

inline esp_status check_grid(const char* operation, const esp_quantizer* q) {
  if (q == nullptr) return fail(ESP_INVALID_ARGUMENT, "%s: the quantizer is NULL", operation);
  const bool is_signed = q->qmin >= -128 && q->qmin < q->qmax && q->qmax <= 127;
  const bool is_unsigned = q->qmin >= 0 && q->qmin < q->qmax && q->qmax <= 255;
  if (!is_signed && !is_unsigned) {
    return fail(ESP_INVALID_ARGUMENT, "%s: the grid %d .. %d fits neither int8 nor uint8", operation, q->qmin,
                q->qmax);
  }
  if (q->rounding != ESP_ROUND_MULTIPLY && q->rounding != ESP_ROUND_DIVIDE) {
    return fail(ESP_INVALID_ARGUMENT, "%s: rounding %d; MULTIPLY (0) or DIVIDE (1) is needed", operation,
                q->rounding);
  }
  return ESP_OK;
}

inline esp_status check_quantizer(const char* operation, const esp_quantizer* q) {
  if (esp_status status = check_grid(operation, q)) return status;
  if (q->observer < ESP_OBSERVER_NONE || q->observer > ESP_OBSERVER_MSE) {
    return fail(ESP_INVALID_ARGUMENT, "%s: observer %d is unknown", operation, q->observer);
  }
  if (q->observer != ESP_OBSERVER_NONE && q->symmetric && (!(q->divisor > 0) || !std::isfinite(q->divisor))) {
    return fail(ESP_INVALID_ARGUMENT, "%s: a divisor of %g; it must be positive and finite", operation,
                static_cast<double>(q->divisor));
  }
  if (q->observer != ESP_OBSERVER_NONE && q->symmetric && q->qmin > 0) {
    return fail(ESP_INVALID_ARGUMENT, "%s: a symmetric grid needs 0; %d .. %d lacks it", operation, q->qmin,
                q->qmax);
  }
  if (q->observer != ESP_OBSERVER_NONE && q->smallest_scale != 0 && !usable_scale(q->smallest_scale)) {
    return fail(
        ESP_INVALID_ARGUMENT,
        "%s: a smallest scale of %g; 0, or what is positive and finite as its reciprocal is, is needed",
        operation, static_cast<double>(q->smallest_scale));
  }
  if (q->observer == ESP_OBSERVER_MOVING_AVERAGE && !(q->average > 0 && q->average <= 1)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: an averaging constant of %g; above 0 and at most 1 is needed",
                operation, static_cast<double>(q->average));
  }
  if (q->observer == ESP_OBSERVER_MSE &&
      (q->clip_steps < 1 || q->clip_steps > 1000 || !(q->clip_smallest > 0 && q->clip_smallest < 1))) {
    return fail(ESP_INVALID_ARGUMENT,
                "%s: %d clip steps down to %g; 1 to 1000 steps to between 0 and 1 are needed", operation,
                q->clip_steps, static_cast<double>(q->clip_smallest));
  }
  return ESP_OK;
}

inline esp_status check_shape(const char* operation, int64_t index, int64_t outer, int64_t channels,
                              int64_t inner, int64_t* n) {
  if (outer < 0 || channels < 0 || inner < 0 || __builtin_mul_overflow(outer, channels, n) ||
      __builtin_mul_overflow(*n, inner, n) || *n > max_elements || channels > max_elements) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld is [%lld, %lld, %lld]", operation,
                static_cast<long long>(index), static_cast<long long>(outer),
                static_cast<long long>(channels), static_cast<long long>(inner));
  }
  return ESP_OK;
}

}  // namespace esp
