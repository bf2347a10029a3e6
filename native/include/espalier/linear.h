/*
 * linear: a linear model that learns from rows as they come: outputs, gradient, and plain gradient descent on
 * one row.
 *
 *   forward    z[i][c] = sum over j of W[c][j] * x[i][j], + b[c]
 *   backward   dW[c][j] = sum over i of k[i] * s[i][c] * x[i][j],  db[c] = sum over i of k[i] * s[i][c]
 *              k[i] = min(1, bound / norm of row i's own gradient), or 1 where bound is 0
 *   descend    W[c][j] -= rate * (s[c] * x[j]),  b[c] -= rate * s[c]      the gradient of one row is never
 * written
 *
 * Layout: all F32; W and dW [outputs, features], x [rows, features], z and s [rows, outputs], row by row, no
 * gaps. A row's gradient is the outer product of s[i] and (x[i], 1), so its norm is the product of theirs
 * (computed in double). k[i] is rounded down so far that the norm of the scaled row does not exceed the
 * bound: what differentially private learning needs. A product of forward is added in 64 sums by column,
 * which then go down a fixed tree; rows of backward in their order. Results have the same bits on every
 * instruction set and for every number of threads. descend gives the bits that backward with one row and
 * fused_sgd give.
 */
#ifndef ESPALIER_LINEAR_H
#define ESPALIER_LINEAR_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Weights, or their gradient. */
typedef struct esp_linear {
  float* weight;    /* [outputs, features] */
  float* bias;      /* [outputs] */
  int64_t outputs;  /* >= 0 */
  int64_t features; /* >= 0 */
} esp_linear;

ESP_API esp_status esp_linear_forward(const esp_linear* model, const float* x, int64_t rows, float* z);

/* Overwrites the gradient. bound: 0, or finite and above. clipped receives the number of rows with k < 1; may
 * be NULL. */
ESP_API esp_status esp_linear_backward(const esp_linear* gradient, const float* x, int64_t rows,
                                       const float* s, double bound, int64_t* clipped);

ESP_API esp_status esp_linear_descend(const esp_linear* model, const float* x, const float* s, double rate);

#ifdef __cplusplus
}
#endif
#endif
