/*
 * dp_accumulate: what differentially private learning (DP-SGD, Abadi and others, 2016) does to gradients.
 *
 *   accumulate  sum += k * gradient,  k = min(1, bound / norm of the gradient over the whole list)
 *   noise       sum = (sum + sigma * z) / divisor,  z independent standard normal numbers
 *
 * accumulate is called once an example, with that example's gradient; noise once a batch. k is rounded down
 * so far that the norm of what is added does not exceed the bound. Norms are those of gradient_norm.
 *
 * z[2i], z[2i + 1] = r cos(2 pi v), r sin(2 pi v) with r = sqrt(-2 log u) (Box and Muller) in double, rounded
 * to float after the multiplication by sigma. u in (0, 1] and v in [0, 1) are multiples of 2^-53 made of
 * block counter + i of Philox 4x32-10 (Salmon and others, 2011) under a key: a tensor of n elements takes (n
 * + 1) / 2 blocks, the next one goes on where it ended. The upper half of the 128-bit counter is 1. Who knows
 * key and counter knows the noise: keep the key secret.
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
  const float* gradient; /* n elements; not read by noise */
  float* sum;            /* n elements */
  int64_t n;             /* >= 0 */
} esp_dp_tensor;

/* bound: finite and above 0. clipped receives 1 where k < 1, else 0. A gradient that is not finite makes the
 * sums NaN. */
ESP_API esp_status esp_dp_accumulate(const esp_dp_tensor* tensors, int64_t count, double bound,
                                     int32_t* clipped);

/* sigma: finite, 0 or more; divisor: finite, above 0. */
ESP_API esp_status esp_dp_noise(const esp_dp_tensor* tensors, int64_t count, int64_t key, int64_t counter,
                                double sigma, double divisor);

#ifdef __cplusplus
}
#endif
#endif
