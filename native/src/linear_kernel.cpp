// linear: products of matrices, and the loops over the features of one row.
//
// Layout: n floats each. Numerics: dots add in 64 sums by column, folded 32, 16 apart and then by reduce_add;
// products in the order of k, an fma a term; squares are exact in double and added in 16 lanes; descend is
// one fma to 0 and one to w, as backward and fused_sgd have them. Blocks of c stay in registers while k runs:
// 4 rows by 4 vectors take 8 loads for 16 fma. AVX2, whose vectors are two registers, has room for 4 by 1. A
// row alone has 8 (4) vectors, so that the latency of its fma is hidden; of dots 4 rows share the loads of b.
#include "linear_kernel.h"

#include "simd/simd.h"

namespace {

using esp::Dots;
using esp::Product;

#if defined(ESP_ISA_avx512)
constexpr int wide = 4, alone = 16, shared_rows = 4;
#else
constexpr int wide = 1, alone = 4, shared_rows = 1;
#endif

// Rows r .. r + R of c, columns j .. j + 16 * V; where cut, of the last vector `last` columns.
template <int R, int V, bool cut>
void block(const Product& p, int64_t r, int64_t j, int64_t last) {
  f32x16 sum[R][V];
  for (int i = 0; i < R; i++) {
    for (int v = 0; v < V; v++) sum[i][v] = set1(0.0f);
  }
  const float* a = p.a + r * p.a_row;
  const float* b = p.b + j;
  for (int64_t k = 0; k < p.k; k++, a += p.a_k, b += p.b_k) {
    f32x16 x[R];
    for (int i = 0; i < R; i++) x[i] = set1(a[i * p.a_row]);
    for (int v = 0; v < V; v++) {
      const f32x16 factor = cut && v == V - 1 ? load_n(b + 16 * v, last) : load(b + 16 * v);
      for (int i = 0; i < R; i++) sum[i][v] = fma(x[i], factor, sum[i][v]);
    }
  }
  for (int i = 0; i < R; i++) {
    float* const c = p.c + (r + i) * p.c_row + j;
    for (int v = 0; v < V; v++) {
      const int64_t n = cut && v == V - 1 ? last : 16;
      f32x16 value = sum[i][v];
      if (p.bias != nullptr) value = value + load_n(p.bias + j + 16 * v, n);
      store_n(c + 16 * v, value, n);
    }
  }
}

template <int R, int V>
void row_of_blocks(const Product& p, int64_t r, int64_t column, int64_t columns) {
  int64_t j = column;
  const int64_t end = column + columns;
  for (; j + 16 * V <= end; j += 16 * V) block<R, V, false>(p, r, j, 16);
  for (; j + 16 <= end; j += 16) block<R, 1, false>(p, r, j, 16);
  if (j < end) block<R, 1, true>(p, r, j, end - j);
}

void product(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  int64_t r = row;
  for (; r + 4 <= row + rows; r += 4) row_of_blocks<4, wide>(p, r, column, columns);
  for (; r < row + rows; r++) row_of_blocks<1, alone>(p, r, column, columns);
}

// R rows of a with one of b.
template <int R>
void dot(const Dots& d, int64_t r, int64_t j) {
  f32x16 sum[R][4];
  for (int i = 0; i < R; i++) {
    for (int v = 0; v < 4; v++) sum[i][v] = set1(0.0f);
  }
  const float* const a = d.a + r * d.k;
  const float* const b = d.b + j * d.k;
  int64_t k = 0;
  for (; k + 64 <= d.k; k += 64) {
    for (int v = 0; v < 4; v++) {
      const f32x16 factor = load(b + k + 16 * v);
      for (int i = 0; i < R; i++) sum[i][v] = fma(factor, load(a + i * d.k + k + 16 * v), sum[i][v]);
    }
  }
  for (; k + 16 <= d.k; k += 16) {
    const f32x16 factor = load(b + k);
    for (int i = 0; i < R; i++) sum[i][0] = fma(factor, load(a + i * d.k + k), sum[i][0]);
  }
  if (k < d.k) {
    const f32x16 factor = load_n(b + k, d.k - k);
    for (int i = 0; i < R; i++) sum[i][1] = fma(factor, load_n(a + i * d.k + k, d.k - k), sum[i][1]);
  }
  for (int i = 0; i < R; i++) {
    const float value = reduce_add((sum[i][0] + sum[i][2]) + (sum[i][1] + sum[i][3]));
    d.c[(r + i) * d.c_row + j] = d.bias == nullptr ? value : value + d.bias[j];
  }
}

void dots(const Dots& d, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  int64_t r = row;
  for (; r + shared_rows <= row + rows; r += shared_rows) {
    for (int64_t j = column; j < column + columns; j++) dot<shared_rows>(d, r, j);
  }
  for (; r < row + rows; r++) {
    for (int64_t j = column; j < column + columns; j++) dot<1>(d, r, j);
  }
}

double squares(const float* x, int64_t n) {
  f64x8 low = zero_f64(), high = low;
  for (int64_t i = 0; i < n; i += 16) {
    const f32x16 v = n - i >= 16 ? load(x + i) : load_n(x + i, n - i);
    const f64x8 a = low_f64(v), b = high_f64(v);
    low = fma(a, a, low);
    high = fma(b, b, high);
  }
  return reduce_add(low + high);
}

void descend(float* w, const float* x, float slope, float minus_rate, int64_t n) {
  // The product as backward adds it to 0: never -0.
  const f32x16 s = set1(slope), r = set1(minus_rate), zero = set1(0.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(w + i, fma(fma(s, load(x + i), zero), r, load(w + i)));
  if (i < n) store_n(w + i, fma(fma(s, load_n(x + i, n - i), zero), r, load_n(w + i, n - i)), n - i);
}

}  // namespace

namespace esp {
extern const LinearKernels ESP_VARIANT(linear);
const LinearKernels ESP_VARIANT(linear) = {product, dots, squares, descend};
}  // namespace esp
