/*
 * fused_sgd: one step of stochastic gradient descent over a list of tensors, with everything that a
 * compressed network needs done while a weight is in the cache. For each element, in this order:
 *
 *   d = mask * gate * gradient            what a pruned or clipped weight receives is no gradient
 *   d = clip factor * d                   min(1, max_norm / (norm + 1e-6)), norm over the whole list
 *   d = (d + sigma * z) / divisor         where noise is wanted: espalier/step_noise.h; no part of the norm
 *   d = -d                                where maximize
 *   d = d + weight_decay * weight         a gated weight still decays
 *   b = first ? d : momentum * b + (1 - dampening) * d
 *   d = nesterov ? d + momentum * b : b
 *   weight = weight - learning_rate * d
 *   weight, b = mask * (weight, b)        exactly +0 where pruned, so that no momentum decays into denormals
 *
 * and then scale, working copy and gate, as espalier/working_copy.h says.
 *
 * Numerics: F32; each "+ a * b" above is one fma, momentum * b is rounded by itself: the bits of
 * torch.optim.SGD (CPU), whose formula this is, where mask, gate and working copy are absent. Options are
 * rounded to F32 (1 - dampening and the clip factor after they were computed in double). No denormal is
 * flushed. Results have the same bits on every instruction set and for every number of threads.
 */
#ifndef ESPALIER_FUSED_SGD_H
#define ESPALIER_FUSED_SGD_H

#include "espalier/common.h"
#include "espalier/step_noise.h"
#include "espalier/step_result.h"
#include "espalier/working_copy.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_sgd_tensor {
  float* weight;        /* rows * cols latent weights, row-major; read and written */
  const void* gradient; /* the same number, of gradient_dtype */
  float*
      momentum; /* the same number; read (but not at the first step) and written; NULL where momentum is 0 */
  const uint8_t* mask; /* bits, or NULL: all kept */
  uint8_t* gate;       /* bits, or NULL: all pass; read, and written anew where scale is given */
  void* working_copy;  /* rows * cols elements, written; NULL with ESP_COPY_NONE */
  float* scale; /* NULL: the working copy is plain; else its scales, written, or read where scale_given */
  int64_t rows, cols; /* >= 0 */
  esp_dtype gradient_dtype;
  int32_t working_copy_type; /* ESP_COPY_* */
  int32_t channel;           /* ESP_CHANNEL_* */
  int32_t scale_given;       /* not 0: scale is kept as it is (positive, finite, with a finite reciprocal) */
  int32_t
      first; /* not 0: the momentum buffer holds nothing yet; a step that is done with momentum clears it */
} esp_sgd_tensor;

typedef struct esp_sgd_options {
  double learning_rate; /* >= 0 */
  double momentum;      /* >= 0 */
  double dampening;
  double weight_decay; /* >= 0 */
  double max_norm;     /* > 0 clips by the norm of all gradients; 0 does not */
  int32_t nesterov;    /* not 0 needs momentum > 0 and dampening 0 */
  int32_t maximize;
  int32_t skip_non_finite; /* not 0: a NaN or infinity among d of line 1 leaves every state as it is, `first`
                              too */
  esp_step_noise noise;    /* zeros: none */
} esp_sgd_options;

/*
 * One step over count >= 0 tensors, in one call. Buffers of different tensors must not overlap.
 *
 * ESP_NON_FINITE, with nothing written: clipping was asked for, skipping was not, and the norm is not finite.
 */
ESP_API esp_status esp_fused_sgd(esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options* options,
                                 esp_step_result* result);

#ifdef __cplusplus
}
#endif
#endif
