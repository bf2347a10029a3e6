/*
 * linear: a linear layer that learns from rows as they come: outputs, gradients, and plain gradient descent
 * on one row. Alone it is a linear model; layers one after the other, with activations between them
 * (espalier/activation.h), are a multilayer perceptron.
 *
 *   forward        z[i][c] = sum over j of W[c][j] * x[i][j], + b[c]
 *   backward       dW[c][j] = sum over i of s[i][c] * x[i][j],  db[c] = sum over i of s[i][c]
 *   backward_rows  dx[i][j] = sum over c of s[i][c] * W[c][j]
 *   squares        n[i] += |s[i]|^2 * (|x[i]|^2, + 1 with a bias)
 *   descend        W[c][j] -= rate * (s[c] * x[j]),  b[c] -= rate * s[c]      the gradient of one row is
 * never written
 *
 * Layout: all F32; x and dx [rows, features], z and s [rows, outputs], W and dW [outputs, features] or, where
 * `transposed`, [features, outputs]; row by row, no gaps. A row's own gradient is the outer product of s[i]
 * and (x[i], 1), so the square of its norm is what `squares` adds, in double: added up over the layers of a
 * model it is that of the whole gradient.
 *
 * Sums: along rows of W (forward, where transposed backward_rows) in 64 sums by column, which then go down a
 * fixed tree; all others in their order, one after the other. Results have the same bits on every instruction
 * set, for every number of threads, and for a row alone as among others. descend gives the bits that backward
 * with one row and fused_sgd give.
 */
#ifndef ESPALIER_LINEAR_H
#define ESPALIER_LINEAR_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Weights, or their gradient. */
typedef struct esp_linear {
  float* weight;      /* [outputs, features], or [features, outputs] */
  float* bias;        /* [outputs]; NULL: none */
  int64_t outputs;    /* >= 0 */
  int64_t features;   /* >= 0 */
  int32_t transposed; /* 1: weight is [features, outputs]; else 0 */
} esp_linear;

ESP_API esp_status esp_linear_forward(const esp_linear* model, const float* x, int64_t rows, float* z);

/* Overwrites the gradient. */
ESP_API esp_status esp_linear_backward(const esp_linear* gradient, const float* x, int64_t rows,
                                       const float* s);

/* Overwrites dx, which must not overlap s. */
ESP_API esp_status esp_linear_backward_rows(const esp_linear* model, const float* s, int64_t rows, float* dx);

/* Adds to n, which has an entry a row. Of the model only the shape and whether there is a bias matter. */
ESP_API esp_status esp_linear_squares(const esp_linear* model, const float* x, int64_t rows, const float* s,
                                      double* n);

/* rate: finite in F32, >= 0. */
ESP_API esp_status esp_linear_descend(const esp_linear* model, const float* x, const float* s, double rate);

#ifdef __cplusplus
}
#endif
#endif
