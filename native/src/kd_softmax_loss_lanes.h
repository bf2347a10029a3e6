// kd_softmax_loss on 16 lanes, whether they are 16 columns of a row or 16 rows of a column: exponentials,
// their sums, and the gradient from both. Rows and their memory, as far as all kernels see them alike.
#pragma once
#include "kd_softmax_loss_kernel.h"
#include "simd/math.h"
#include "simd/simd.h"

namespace {

using esp::kd_group;
using esp::kd_segment;
using esp::KdCoefficients;
using esp::KdExponential;
using esp::KdPlan;
using esp::KdSegmentSums;

constexpr float infinity = __builtin_inff();
constexpr double ln2 = 0x1.62e42fefa39efp-1;
constexpr double far_exponent = 0x1p19;  // beyond, logits are taken relative to their maximum first
constexpr float normal_exponent = -120;  // above, exponentials are normal numbers without doubt

int64_t size_of(esp_dtype dtype) {
  return dtype == ESP_F32 ? 4 : 2;
}
const char* row_of(const esp_logits& logits, int64_t row) {
  return static_cast<const char*>(logits.data) + row * logits.stride * size_of(logits.dtype);
}
float element(esp_dtype dtype, const char* row, int64_t column) {
  float lanes[16];
  if (dtype == ESP_F32) return reinterpret_cast<const float*>(row)[column];
  store(lanes, dtype == ESP_BF16 ? load_n(reinterpret_cast<const bf16*>(row) + column, 1)
                                 : load_n(reinterpret_cast<const f16*>(row) + column, 1));
  return lanes[0];
}
bool kept(const KdPlan& plan, int64_t row) {
  const uint8_t* mask = plan.arguments.row_mask;
  return mask == nullptr || (mask[row >> 3] >> (row & 7) & 1) != 0;
}
// The column of the label, or -1.
int64_t label_of(const KdPlan& plan, int64_t row) {
  if (!plan.labels_used) return -1;
  const int64_t label = plan.arguments.labels[row];
  return label == plan.arguments.ignore_index ? -1 : label;
}
// Whether any part looks at the row.
bool looked_at(const KdPlan& plan, int64_t row) {
  return kept(plan, row) &&
         (plan.teacher_used || plan.arguments.bound.data != nullptr || label_of(plan, row) >= 0);
}

// ---- Exponentials

// Where exponentials go, and max(0, s - b); nullptr where not used.
struct Scratch {
  float *student, *teacher, *hard, *excess;
};

struct Constants {
  f32x16 high, low, lowest, student_origin, teacher_origin;  // at T
  f32x16 hard_high, hard_low, hard_lowest, hard_origin;      // at 1, where power is 0
};

// The integer that takes the place of a maximum.
ESP_INLINE f32x16 exponent_of(const KdExponential& e, f32x16 maximum) {
  return rint(max(maximum, set1(e.lowest)) * set1(e.high));
}
ESP_INLINE float exponent_of(const KdExponential& e, float maximum) {
  return __builtin_rintf((maximum > e.lowest ? maximum : e.lowest) * e.high);
}
// What exp2_scaled takes so that the largest power is about 2^bias.
ESP_INLINE f32x16 origin_of(const KdExponential& e, f32x16 exponent) {
  return set1(power_origin) + (set1(static_cast<float>(e.bias)) - exponent);
}
// Where no exponential down from `minimum` needs a limit.
ESP_INLINE mask16 is_normal(const KdExponential& e, f32x16 minimum, f32x16 exponent) {
  return set1(normal_exponent) <= minimum * set1(e.high) - exponent + set1(static_cast<float>(e.bias));
}
ESP_INLINE bool is_normal(const KdExponential& e, float minimum, float exponent) {
  return normal_exponent <= minimum * e.high - exponent + static_cast<float>(e.bias);
}

ESP_INLINE Constants constants_of(const KdPlan& plan, f32x16 s_exponent, f32x16 t_exponent,
                                  f32x16 h_exponent) {
  return {set1(plan.soft.high),
          set1(plan.soft.low),
          set1(plan.soft.lowest),
          origin_of(plan.soft, s_exponent),
          origin_of(plan.soft, t_exponent),
          set1(plan.hard.high),
          set1(plan.hard.low),
          set1(plan.hard.lowest),
          origin_of(plan.hard, h_exponent)};
}

struct Sums {
  f32x16 student, teacher, hard, difference;
};
ESP_INLINE Sums no_sums() {
  return {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
}

// The T-th power.
template <int power>
ESP_INLINE f32x16 hard_of(f32x16 student) {
  if constexpr (power == 1) return student;
  const f32x16 square = student * student;
  if constexpr (power == 2) return square;
  return square * square;
}

// 2^..; where not `normal`, logits are limited first (the limit before them, so that a NaN passes).
template <bool normal>
ESP_INLINE Power exponential(f32x16 x, f32x16 high, f32x16 low, f32x16 lowest, f32x16 origin) {
  return exp2_scaled<normal>(normal ? x : max(lowest, x), high, low, origin);
}

// The exponentials of 16 logits to scratch memory at i, and their sums; of `inside` only, unless `whole`.
template <int power, bool teacher, bool normal, bool whole>
ESP_INLINE_IN_REGISTERS void exponentials(const Constants& c, f32x16 s, f32x16 t, mask16 inside,
                                          const Scratch& scratch, int64_t i, Sums& sums) {
  const Power p = exponential<normal>(s, c.high, c.low, c.lowest, c.student_origin);
  const f32x16 x = whole ? p.value : keep(inside, p.value);
  store(scratch.student + i, x);
  sums.student = sums.student + x;
  if constexpr (teacher) {
    const Power q = exponential<normal>(t, c.high, c.low, c.lowest, c.teacher_origin);
    const f32x16 w = whole ? q.value : keep(inside, q.value);
    store(scratch.teacher + i, w);
    sums.teacher = sums.teacher + w;
    // log2 of the quotient; integers and fractions apart, or it would have the error of the logits.
    const f32x16 quotient = (q.exponent - p.exponent) + (q.fraction - p.fraction);
    sums.difference = fma(w, quotient, sums.difference);
  }
  if constexpr (power == 0) {
    const Power h = exponential<normal>(s, c.hard_high, c.hard_low, c.hard_lowest, c.hard_origin);
    const f32x16 y = whole ? h.value : keep(inside, h.value);
    store(scratch.hard + i, y);
    sums.hard = sums.hard + y;
  } else if constexpr (power != 1) {
    sums.hard = sums.hard + hard_of<power>(x);
  }
}

struct WideSum {
  f64x8 low, high;
};
ESP_INLINE WideSum no_sum() {
  return {zero_f64(), zero_f64()};
}
ESP_INLINE void add(WideSum& sum, f32x16 v) {
  sum.low = sum.low + low_f64(v);
  sum.high = sum.high + high_f64(v);
}
ESP_INLINE void add_square(WideSum& sum, f32x16 v) {
  const f64x8 low = low_f64(v), high = high_f64(v);
  sum.low = fma(low, low, sum.low);
  sum.high = fma(high, high, sum.high);
}
ESP_INLINE double total(const WideSum& sum) {
  return reduce_add(sum.low + sum.high);
}

// max(0, s - b); a bound of -inf bounds nothing. The limit first, so that a NaN passes.
ESP_INLINE f32x16 excess_of(f32x16 s, f32x16 b) {
  return keep(~(b == set1(-infinity)), max(set1(0.0f), s - b));
}

// ---- Gradient

struct Weights {
  f32x16 student, teacher, hard, bound, student_scale, teacher_scale, hard_scale;
};

template <int power, bool teacher, bool scaled>
ESP_INLINE_IN_REGISTERS f32x16 gradient_of(const Weights& w, const Scratch& scratch, int64_t i) {
  f32x16 x = load(scratch.student + i);
  if constexpr (scaled) x = x * w.student_scale;
  f32x16 g = w.student * x;
  if constexpr (teacher) {
    f32x16 t = load(scratch.teacher + i);
    if constexpr (scaled) t = t * w.teacher_scale;
    g = fnma(w.teacher, t, g);
  }
  if constexpr (power == 0) {
    f32x16 h = load(scratch.hard + i);
    if constexpr (scaled) h = h * w.hard_scale;
    g = fma(w.hard, h, g);
  } else if constexpr (power != 1) {
    g = fma(w.hard, hard_of<power>(x), g);
  }
  if (scratch.excess != nullptr) g = fma(w.bound, load(scratch.excess + i), g);
  return g;
}

// What function templates differ by: how the exponential at 1 comes from that at T, and whether there is a
// teacher.
template <int power_, bool teacher_>
struct Powers {
  static constexpr int power = power_;
  static constexpr bool teacher = teacher_;
};
template <class Use>
ESP_INLINE auto with_power(const KdPlan& plan, Use use) {
  if (!plan.teacher_used) return use(Powers<1, false>{});
  switch (plan.power) {
    case 1:
      return use(Powers<1, true>{});
    case 2:
      return use(Powers<2, true>{});
    case 4:
      return use(Powers<4, true>{});
    default:
      return use(Powers<0, true>{});
  }
}

template <class T>
struct Pointed;
template <class T>
struct Pointed<T*> {
  using Type = T;
};

// use(pointer) to the gradient's elements from (row, column) on, as their type.
template <class Use>
ESP_INLINE void with_gradient(const KdPlan& plan, int64_t row, int64_t column, Use use) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  const int64_t at = row * a.gradient_stride + column;
  with_dtype(a.gradient_dtype, [&](auto element) { use(static_cast<decltype(element)*>(a.gradient) + at); });
}

template <class G>
void fill(G* g, int64_t n, float value) {
  const f32x16 v = set1(value);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(g + i, v);
  store_n(g + i, v, n - i);
}
void fill_row(const KdPlan& plan, int64_t row, float value) {
  if (plan.arguments.gradient == nullptr) return;
  with_gradient(plan, row, 0, [&](auto* g) { fill(g, plan.arguments.classes, value); });
}

}  // namespace
