/*
 * gradient_norm: the Euclidean norm and the finiteness of the gradients that an update would see.
 *
 *   g^ = mask * gate * g,  norm = sqrt(sum of g^^2 over all tensors)
 *
 * Squares are added in double, in a fixed order (16 lanes in a block of a tensor, then the blocks in list order in 256
 * lanes), so the result has the same bits on every instruction set, for every number of threads, and on a GPU.
 */
#ifndef ESPALIER_GRADIENT_NORM_H
#define ESPALIER_GRADIENT_NORM_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_gradient {
  const void* gradient; /* n elements of dtype */
  const uint8_t* mask;  /* bits, or NULL: all kept */
  const uint8_t* gate;  /* bits, or NULL: all pass */
  int64_t n;            /* >= 0 */
  esp_dtype dtype;
} esp_gradient;

typedef struct esp_gradient_norm_result {
  double norm;        /* not finite where non_finite > 0 */
  int64_t non_finite; /* NaN and infinite entries among those that mask and gate let through */
} esp_gradient_norm_result;

/* One call for a list of count >= 0 tensors. */
ESP_API esp_status esp_gradient_norm(const esp_gradient* gradients, int64_t count, esp_gradient_norm_result* result);

#ifdef __cplusplus
}
#endif
#endif
