/*
 * kd_softmax_loss: the loss of distillation and its gradient, in one call.
 *
 *   student s, teacher t, bound b: [N, C] logits; labels y: [N]; temperature T
 *
 *   ce    = mean over the valid rows of -log softmax(s)_y
 *   kl    = mean over the rows of T^2 * sum_c softmax(t/T) * (log softmax(t/T) - log softmax(s/T))
 *   bound = mean over the rows of sum_c max(0, s - b)^2
 *   loss  = alpha * ce + (1 - alpha) * kl + beta * bound
 *
 *   dloss/ds = alpha * valid * (softmax(s) - 1_y) / N_valid
 *            + (1 - alpha) * T * (softmax(s/T) - softmax(t/T)) / N + 2 * beta * max(0, s - b) / N
 *
 * Rows are the N rows, or those whose bit is set where a row mask is given (N in the formulas is then their
 * number); valid rows are those of them whose label is not ignore_index. A mean over no rows is 0. A part
 * whose input is absent is 0: no labels, no ce; no teacher, no kl; beta = 0, no bound. Formulas: Hinton,
 * Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2, for ce and kl.
 *
 * Numerics: |error of a gradient entry| <= 2^-21 * (p_s + p_t) * coefficient, plus 2^-145 where a probability
 * is that small, then rounding to the gradient's element type; logits of any finite size are safe. Sums
 * within a row run in an order that only C decides, rows add up in double in one that only N decides: the
 * same bits on every instruction set and for every number of threads.
 *
 * What is not finite: a -inf logit has probability 0. A -inf teacher or bound entry contributes 0; a -inf
 * student entry makes kl +inf where the teacher's probability is not 0, and ce where it is the label;
 * gradients stay finite. A row with a NaN, a +inf student or teacher, or a student or teacher of -inf
 * throughout has NaN for its parts and its whole gradient row. Rows outside the mask are not read, and get a
 * gradient of 0; so do rows that no part looks at.
 */
#ifndef ESPALIER_KD_SOFTMAX_LOSS_H
#define ESPALIER_KD_SOFTMAX_LOSS_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* N rows of C elements of dtype; row i starts stride * i elements after data. */
typedef struct esp_logits {
  const void* data; /* NULL: absent */
  int64_t stride;   /* >= C, or 0: every row is the same */
  esp_dtype dtype;
} esp_logits;

typedef struct esp_kd_softmax_loss_arguments {
  int64_t rows;    /* N >= 0 */
  int64_t classes; /* C >= 1 */
  esp_logits student;
  esp_logits teacher; /* or absent */
  esp_logits
      bound; /* or absent: the teacher's logits. Looked at where beta > 0, which needs one of the two */
  const int64_t*
      labels; /* [N], each in [0, C) or ignore_index (rows outside the mask are not looked at), or NULL */
  const uint8_t* row_mask; /* bits [N], or NULL: all rows */
  void* gradient; /* [N, C], or NULL: not wanted. May be the memory of student, teacher or bound where stride
                     and dtype are the same, too; otherwise it must not overlap an input */
  int64_t gradient_stride; /* >= C */
  esp_dtype gradient_dtype;
  int64_t ignore_index; /* -100 by custom */
  double temperature;   /* in [1e-30, 1e30] */
  double alpha;         /* in [0, 1] */
  double beta;          /* >= 0, finite */
} esp_kd_softmax_loss_arguments;

typedef struct esp_kd_softmax_loss_result {
  double loss;
  double ce;
  double kl;
  double bound;
  int64_t rows;  /* the N of the means */
  int64_t valid; /* the rows of ce */
} esp_kd_softmax_loss_result;

/* A label outside its range is ESP_INVALID_ARGUMENT and names row and value; nothing is written then. */
ESP_API esp_status esp_kd_softmax_loss(const esp_kd_softmax_loss_arguments* arguments,
                                       esp_kd_softmax_loss_result* result);

#ifdef __cplusplus
}
#endif
#endif
