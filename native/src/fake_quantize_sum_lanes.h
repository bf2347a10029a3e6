// The sums of fake_quantize over channels, in the order of fake_quantize_order.h: squared errors for the MSE
// observer, gradients of scales and zero points.
//
// Numerics: F32 up to what an element adds, then double; 16 lanes down a segment, the segments of a chunk in
// order, then the lanes of rows by a fixed tree.
#pragma once
#include "fake_quantize_lanes.h"
#include "fake_quantize_scale_lanes.h"

namespace {

using esp::Window;

// A sum in double, 16 lanes wide.
struct SumLanes {
  f64x8 low = zero_f64(), high = zero_f64();

  ESP_MEMBER void add_product(f32x16 a, f32x16 b) {
    low = fma(low_f64(a), low_f64(b), low);
    high = fma(high_f64(a), high_f64(b), high);
  }
  ESP_MEMBER void add(const SumLanes& segment) {
    low = low + segment.low;
    high = high + segment.high;
  }
  // The lanes of rows, added up.
  ESP_MEMBER double total() const {
    double lanes[8];
    store(lanes, low + high);
    for (int half = 4; half > 0; half /= 2) {
      for (int k = 0; k < half; k++) lanes[k] += lanes[k + half];
    }
    return lanes[0];
  }
  // The first n lanes, each a column's.
  ESP_MEMBER void store_columns(double* to, int64_t n) const {
    double lanes[16];
    store(lanes, low);
    store(lanes + 8, high);
    for (int64_t k = 0; k < n; k++) to[k] = lanes[k];
  }
};

// What is summed up at once. Beside this one: SumLanes alone, GradientSums.
template <int count>
struct SeveralSums {
  SumLanes of[count];
  ESP_MEMBER void add(const SeveralSums& segment) {
#pragma GCC unroll 4
    for (int c = 0; c < count; c++) of[c].add(segment.of[c]);
  }
};

// The sums over the segments of a channel. add(at, i, n, sums) adds the n <= 16 elements from flat index `at`
// on, which are in the columns from i on.
template <class Sums, class Add>
ESP_INLINE Sums sum_rows(const Window* segments, int64_t count, const Add& add) {
  Sums all;
  for (int64_t s = 0; s < count; s++) {
    const Window w = segments[s];
    Sums segment;
    for (int64_t r = 0; r < w.rows; r++) {
      const int64_t first = w.first + r * w.stride;
      int64_t i = 0;
      for (; i + 16 <= w.columns; i += 16) add(first + i, i, 16, segment);
      if (i < w.columns) add(first + i, i, w.columns - i, segment);
    }
    all.add(segment);
  }
  return all;
}
// Those down each 16 columns of a chunk, so that they stay in registers; finish(i, n, sums) takes those of n
// columns.
template <class Sums, class Add, class Finish>
ESP_INLINE void sum_columns(const Window& w, int64_t in_last, const Add& add, const Finish& finish) {
  for (int64_t i = 0; i < w.columns; i += 16) {
    const int64_t n = w.columns - i < 16 ? w.columns - i : 16, last = in_last - i < n ? in_last - i : n;
    const int64_t rows = last < n ? w.rows - 1 : w.rows;
    Sums all;
    for (int64_t top = 0; top < w.rows; top += esp::segment_rows) {
      const int64_t bottom = top + esp::segment_rows < rows ? top + esp::segment_rows : rows;
      Sums segment;
      for (int64_t r = top; r < bottom; r++) add(w.first + r * w.stride + i, i, n, segment);
      if (rows < w.rows && w.rows <= top + esp::segment_rows && last > 0)
        add(w.first + rows * w.stride + i, i, last, segment);
      all.add(segment);
    }
    finish(i, n, all);
  }
}

// ---- squared errors

// Several grids at once, so that the errors of one are formed while those of another wait.
template <class T, int candidates>
void error_rows_of(const esp::QuantizeTarget& t, const Window* segments, int64_t count,
                   const esp::Grid* grids, double* sums) {
  using Errors = SeveralSums<candidates>;
  const bool divide = t.divide;
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest_float);
  const auto add = [&](int64_t at, int64_t, int64_t n, Errors & errors) __attribute__((always_inline)) {
    const f32x16 v = load_up_to(static_cast<const T*>(t.x) + at, n);
    const mask16 counts = first_lanes(n) & (abs(v) <= finite);
#pragma GCC unroll 4
    for (int c = 0; c < candidates; c++) {
      const f32x16 zero = set1(grids[c].zero), by = set1(divide ? grids[c].scale : grids[c].inverse);
      const f32x16 q = clamp_position(grid_position(v, by, zero, divide), qmin, qmax);
      const f32x16 e = keep(counts, grid_value(q, set1(grids[c].scale), zero) - v);
      errors.of[c].add_product(e, e);
    }
  };
  const Errors errors = sum_rows<Errors>(segments, count, add);
  for (int c = 0; c < candidates; c++) sums[c] = errors.of[c].total();
}

void error_rows(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const esp::Grid* grids,
                int64_t candidates, double* sums) {
  with_dtype(t.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int most = esp::candidates_at_once;
    if (candidates == most) return error_rows_of<T, most>(t, segments, count, grids, sums);
    for (int64_t c = 0; c < candidates; c++) error_rows_of<T, 1>(t, segments, count, grids + c, sums + c);
  });
}

template <class T>
void error_columns_of(const esp::QuantizeTarget& t, const Window& chunk, int64_t in_last,
                      const esp::GridScale& scales, double* sum) {
  const bool divide = t.divide;
  const PerColumn scale(scales, divide);
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest_float);
  const auto add = [&](int64_t at, int64_t i, int64_t n, SumLanes & errors) __attribute__((always_inline)) {
    const f32x16 v = load_up_to(static_cast<const T*>(t.x) + at, n), zero = scale.zero(i, n);
    const f32x16 q = clamp_position(grid_position(v, scale.by(i, n), zero, divide), qmin, qmax);
    const f32x16 e = keep(first_lanes(n) & (abs(v) <= finite), grid_value(q, scale.scale(i, n), zero) - v);
    errors.add_product(e, e);
  };
  sum_columns<SumLanes>(chunk, in_last, add, [&](int64_t i, int64_t n, const SumLanes& errors) {
    errors.store_columns(sum + i, n);
  });
}

void error_columns(const esp::QuantizeTarget& t, const Window& chunk, int64_t in_last,
                   const esp::GridScale& scales, double* sum) {
  with_dtype(t.dtype,
             [&](auto element) { error_columns_of<decltype(element)>(t, chunk, in_last, scales, sum); });
}

// ---- gradients of scales and zero points; grad_x on the way

struct GradientSums {
  SumLanes by_scale, by_zero;
  ESP_MEMBER void add(const GradientSums& segment) {
    by_scale.add(segment.by_scale);
    by_zero.add(segment.by_zero);
  }
};

// Adds what n elements of x and grad_y give, and writes grad_x.
template <class T, class Scale>
ESP_INLINE void add_gradients(const esp::ScaleGradientTarget& t, const Scale& scale, bool divide, int64_t at,
                              int64_t i, int64_t n, GradientSums& sums) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), nought = set1(0.0f);
  const f32x16 g = load_up_to(static_cast<const T*>(t.grad_y) + at, n),
               x = load_up_to(static_cast<const T*>(t.x) + at, n);
  const f32x16 by = scale.by(i, n), zero = scale.zero(i, n);
  const f32x16 v = divide ? x / by : x * by, rounded = rint(v), position = rounded + zero;
  const mask16 pass = gate_of(position, qmin, qmax);
  const f32x16 clipped = clamp_position(position, qmin, qmax) - zero;
  sums.by_scale.add_product(g, select(pass, rounded - v, clipped));
  sums.by_zero.add_product(g, select(pass, nought, nought - scale.scale(i, n)));
  if (t.grad_x != nullptr) store_up_to(static_cast<T*>(t.grad_x) + at, keep(pass, g), n);
}

template <class T>
void scale_gradient_rows_of(const esp::ScaleGradientTarget& t, const Window* segments, int64_t count,
                            const esp::Grid& grid, double* scale_sum, double* zero_sum) {
  const bool divide = t.divide;
  const Constant scale(grid, divide);
  const GradientSums sums = sum_rows<GradientSums>(
      segments,
      count, [&](int64_t at, int64_t i, int64_t n, GradientSums & segment) __attribute__((always_inline)) {
        add_gradients<T>(t, scale, divide, at, i, n, segment);
      });
  *scale_sum = sums.by_scale.total();
  *zero_sum = sums.by_zero.total();
}

void scale_gradient_rows(const esp::ScaleGradientTarget& t, const Window* segments, int64_t count,
                         const esp::Grid& grid, double* scale_sum, double* zero_sum) {
  with_dtype(t.dtype, [&](auto element) {
    scale_gradient_rows_of<decltype(element)>(t, segments, count, grid, scale_sum, zero_sum);
  });
}

template <class T>
void scale_gradient_columns_of(const esp::ScaleGradientTarget& t, const Window& chunk, int64_t in_last,
                               const esp::GridScale& scales, double* scale_sum, double* zero_sum) {
  const bool divide = t.divide;
  const PerColumn scale(scales, divide);
  sum_columns<GradientSums>(
      chunk, in_last,
      [&](int64_t at, int64_t i, int64_t n, GradientSums & segment)
          __attribute__((always_inline)) { add_gradients<T>(t, scale, divide, at, i, n, segment); },
      [&](int64_t i, int64_t n, const GradientSums& sums) {
        sums.by_scale.store_columns(scale_sum + i, n);
        sums.by_zero.store_columns(zero_sum + i, n);
      });
}

void scale_gradient_columns(const esp::ScaleGradientTarget& t, const Window& chunk, int64_t in_last,
                            const esp::GridScale& scales, double* scale_sum, double* zero_sum) {
  with_dtype(t.dtype, [&](auto element) {
    scale_gradient_columns_of<decltype(element)>(t, chunk, in_last, scales, scale_sum, zero_sum);
  });
}

}  // namespace
