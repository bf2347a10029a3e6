/*
 * dp_accumulate: what differentially private learning (DP-SGD, Abadi and others, 2016) does to the gradient
 * of each example, before a step of an optimizer adds noise to their sum (espalier/step_noise.h).
 *
 *   sum += k * gradient,  k = min(1, bound / norm of the gradient over the whole list)
 *
 * k is rounded down so far that the norm of what is added does not exceed the bound. Norms are those of
 * gradient_norm.
 *
 * Results have the same bits on every instruction set and for every number of threads.
 */
#ifndef ESPALIER_DP_ACCUMULATE_H
#define ESPALIER_DP_ACCUMULATE_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_dp_tensor {
  const float* gradient; /* n elements */
  float* sum;            /* n elements */
  int64_t n;             /* >= 0 */
} esp_dp_tensor;

/* bound: finite and above 0. clipped receives 1 where k < 1, else 0. A gradient that is not finite makes the
 * sums NaN. */
ESP_API esp_status esp_dp_accumulate(const esp_dp_tensor* tensors, int64_t count, double bound,
                                     int32_t* clipped);

#ifdef __cplusplus
}
#endif
#endif
