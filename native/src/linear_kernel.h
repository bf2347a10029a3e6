#pragma once
#include "cpu_features.h"
#include "espalier/linear.h"

namespace esp {

// c[r][j] = sum over k of a[r * a_row + k * a_k] * b[k * b_k + j] in the order of k, + bias[j] where there is
// one; bit for bit the same for any way to cut rows and columns.
struct Product {
  const float* a;
  int64_t a_row, a_k;
  const float* b;
  int64_t b_k;
  float* c;
  int64_t c_row;
  const float* bias;  // or nullptr
  int64_t k;
};

// c[r * c_row + j * c_column] = sum over k of a[r * k + ...] * b[j * k + ...] in 64 sums, + bias: rows of
// both lie one after the other.
struct Dots {
  const float *a, *b;
  float* c;
  int64_t c_row;
  const float* bias;  // of a column, or nullptr
  int64_t k;
};

struct LinearKernels {
  // Of rows [row, row + rows) and columns [column, column + columns) of c.
  void (*product)(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t columns);
  void (*dots)(const Dots& d, int64_t row, int64_t rows, int64_t column, int64_t columns);
  double (*squares)(const float* x, int64_t n);  // sum of x^2
  void (*descend)(float* w, const float* x, float slope, float minus_rate,
                  int64_t n);  // w += minus_rate * (slope * x)
};

}  // namespace esp

ESP_DECLARE_VARIANTS(LinearKernels, linear)
