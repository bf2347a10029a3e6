/*
 * fused_adamw: one step of AdamW (Loshchilov and Hutter, «Decoupled Weight Decay Regularization», as
 * torch.optim.AdamW computes it) over a list of tensors, with everything that a compressed network needs done
 * while a weight is in the cache. For each element, in this order, t being 1 in the first step:
 *
 *   g = mask * gate * gradient            what a pruned or clipped weight receives is no gradient
 *   g = clip factor * g                   min(1, max_norm / (norm + 1e-6)), norm over the whole list
 *   g = (g + sigma * z) / divisor         where noise is wanted: espalier/step_noise.h; no part of the norm
 *   g = -g                                where maximize
 *   m = beta1 * m + (1 - beta1) * g       m and v are 0 before the first step
 *   v = beta2 * v + (1 - beta2) * g * g
 *   weight = (1 - learning_rate * weight_decay) * weight
 *            - learning_rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
 *   m, v = +0 where their magnitude is below 2^-126
 *   weight, m, v = mask * (weight, m, v)  exactly +0 where pruned
 *
 * and then scale, working copy and gate, as espalier/working_copy.h says. A gated weight still decays.
 *
 * The moments of a weight that gets no gradient for a thousand steps (a word that no text holds) would stay
 * denormal for ever, which some processors compute a hundred times slower; such a moment moves no weight, so
 * the rule makes it zero on every backend.
 *
 * Numerics: F32; each "+ a * b" and "- a * b" above is one fma, with (1 - beta1) * g, ((1 - beta2) * g) * g,
 * step size * (m / denominator), and sqrt(v) times the reciprocal of sqrt(1 - beta2^t). Options, and what is
 * computed from them alone (in double), are rounded to F32. Results have the same bits on every instruction
 * set and for every number of threads; beside torch.optim.AdamW they differ in roundings.
 */
#ifndef ESPALIER_FUSED_ADAMW_H
#define ESPALIER_FUSED_ADAMW_H

#include "espalier/common.h"
#include "espalier/step_noise.h"
#include "espalier/step_result.h"
#include "espalier/working_copy.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_adamw_tensor {
  float* weight;        /* rows * cols latent weights, row-major; read and written */
  const void* gradient; /* the same number, of gradient_dtype */
  float* first_moment;  /* m, the same number; written, and read where step is not 0 */
  float* second_moment; /* v, likewise */
  const uint8_t* mask;  /* bits, or NULL: all kept */
  uint8_t* gate;        /* bits, or NULL: all pass; read, and written anew where scale is given */
  void* working_copy;   /* rows * cols elements, written; NULL with ESP_COPY_NONE */
  float* scale; /* NULL: the working copy is plain; else its scales, written, or read where scale_given */
  int64_t rows, cols; /* >= 0 */
  int64_t step;       /* >= 0, steps done: 0 says that the moments hold nothing yet; a step adds 1 */
  esp_dtype gradient_dtype;
  int32_t working_copy_type; /* ESP_COPY_* */
  int32_t channel;           /* ESP_CHANNEL_* */
  int32_t scale_given;       /* not 0: scale is kept as it is (positive, finite, with a finite reciprocal) */
} esp_adamw_tensor;

typedef struct esp_adamw_options {
  double learning_rate; /* >= 0 */
  double beta1;         /* 0 <= beta1 < 1 */
  double beta2;         /* 0 <= beta2 < 1 */
  double epsilon;       /* > 0, as F32 too: a weight that never had a gradient divides by it */
  double weight_decay;  /* >= 0 */
  double max_norm;      /* > 0 clips by the norm of all gradients; 0 does not */
  int32_t maximize;
  int32_t skip_non_finite; /* not 0: a NaN or infinity among g of line 1 leaves every state as it is, `step`
                              too */
  esp_step_noise noise;    /* zeros: none */
} esp_adamw_options;

/*
 * One step over count >= 0 tensors, in one call. Buffers of different tensors must not overlap.
 *
 * ESP_NON_FINITE, with nothing written: clipping was asked for, skipping was not, and the norm is not finite.
 */
ESP_API esp_status esp_fused_adamw(esp_adamw_tensor* tensors, int64_t count, const esp_adamw_options* options,
                                   esp_step_result* result);

#ifdef __cplusplus
}
#endif
#endif
