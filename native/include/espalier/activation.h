/*
 * activation: the functions between layers, element by element, in place.
 *
 *   relu        y = max(0, u)                     y' = y > 0 ? 1 : 0
 *   leaky relu  y = u < 0 ? alpha * u : u         y' = y > 0 ? 1 : alpha
 *   sigmoid     y = 1 / (1 + exp(-u))             y' = y * (1 - y)
 *   tanh        y = tanh(u)                       y' = 1 - y * y
 *
 *   forward     u becomes y
 *   backward    s becomes s * y', where s is the gradient with respect to y: that with respect to u
 *
 * Slopes are of the result, so that u need not be kept; at 0 they are what PyTorch takes. sigmoid and tanh
 * are within 3 units in the last place of the exact value, sigmoid from -88 on: below, it stays what it is there,
 * 6e-39. NaN stays NaN. Results have the same bits on every instruction set and for every number of threads.
 */
#ifndef ESPALIER_ACTIVATION_H
#define ESPALIER_ACTIVATION_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_RELU 0
#define ESP_LEAKY_RELU 1
#define ESP_SIGMOID 2
#define ESP_TANH 3

/* n >= 0 elements, F32. alpha: finite, >= 0, of the leaky relu alone. */
ESP_API esp_status esp_activation_forward(int32_t kind, float alpha, float* values, int64_t n);

/* y: what forward has made; must not overlap s. */
ESP_API esp_status esp_activation_backward(int32_t kind, float alpha, const float* y, float* s, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
