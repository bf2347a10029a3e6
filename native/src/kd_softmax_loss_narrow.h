// kd_softmax_loss, rows of at most `narrow` columns: 16 rows at a time are transposed, so that the lanes are
// rows, sums need no reduction, and no lane is wasted. All of it stays in the first cache: logits are
// replaced by their exponentials.
#pragma once
#include "kd_softmax_loss_group.h"

namespace {

constexpr int64_t narrow = 64;

// Smallest and largest of each row, a NaN left out.
struct Ranges {
  f32x16 max, min;
};

template <class T, bool full>
ESP_INLINE void load_tile(const T* p, int64_t stride, uint32_t rows, int64_t n, f32x16 (&tile)[16]) {
  for (int r = 0; r < 16; r++) {
    tile[r] = full ? load(p + r * stride) : (rows >> r & 1) == 0 ? set1(0.0f) : load_n(p + r * stride, n);
  }
  transpose(tile);
}

// Columns of logits as vectors over 16 rows; rows that are not wanted read as 0.
template <class T>
Ranges load_columns(const T* p, int64_t stride, uint32_t rows, int64_t classes, float* columns) {
  f32x16 most = set1(-infinity), least = set1(infinity);  // no struct: it might lie where the caller wants it
  for (int64_t c = 0; c < classes; c += 16) {
    const int64_t n = classes - c < 16 ? classes - c : 16;
    f32x16 tile[16];
    if (n == 16 && rows == all_rows) {
      load_tile<T, true>(p + c, stride, rows, n, tile);
      for (int i = 0; i < 16; i++) {
        store(columns + (c + i) * 16, tile[i]);
        most = max(tile[i], most);
        least = min(tile[i], least);
      }
    } else {
      load_tile<T, false>(p + c, stride, rows, n, tile);
      for (int i = 0; i < 16; i++) store(columns + (c + i) * 16, tile[i]);  // there is room for 16
      for (int64_t i = 0; i < n; i++) {
        const f32x16 v = load(columns + (c + i) * 16);
        most = max(v, most);
        least = min(v, least);
      }
    }
  }
  return {most, least};
}
Ranges load_columns(const esp_logits& logits, int64_t first, uint32_t rows, int64_t classes, float* columns) {
  const char* p = row_of(logits, first);
  return with_dtype(logits.dtype, [&](auto element) {
    return load_columns(reinterpret_cast<const decltype(element)*>(p), logits.stride, rows, classes, columns);
  });
}

// Exponentials in place of the logits. Four short chains of sums in place of a long one, for accuracy and for
// speed: column i adds to chain i mod 4.
template <int power, bool teacher, bool normal>
Sums sum_columns(const Constants& given, int64_t classes, const Scratch& to) {
  const Constants c = given;  // out of reach of the stores
  const Scratch scratch = to;
  Sums a = no_sums(), b = no_sums(), d = no_sums(), e = no_sums();
  const auto add = [&](int64_t column, Sums & sums) __attribute__((always_inline)) {
    const int64_t at = column * 16;
    exponentials<power, teacher, normal, true>(c, load(scratch.student + at),
                                               teacher ? load(scratch.teacher + at) : set1(0.0f), mask16{},
                                               scratch, at, sums);
  };
  int64_t i = 0;
  for (; i + 4 <= classes; i += 4) {
    add(i, a);
    add(i + 1, b);
    add(i + 2, d);
    add(i + 3, e);
  }
  if (i < classes) add(i, a);
  if (i + 1 < classes) add(i + 1, b);
  if (i + 2 < classes) add(i + 2, d);
  Sums total;
  total.student = (a.student + b.student) + (d.student + e.student);
  total.teacher = (a.teacher + b.teacher) + (d.teacher + e.teacher);
  total.hard = power == 1 ? total.student : (a.hard + b.hard) + (d.hard + e.hard);
  total.difference = (a.difference + b.difference) + (d.difference + e.difference);
  return total;
}

// The gradient of columns c .. c + 15 for the rows whose bit is set, transposed back. `full`: there are 16
// columns and all 16 rows; else n columns.
template <bool full, int power, bool teacher, class G>
ESP_INLINE_IN_REGISTERS void write_tile(const Weights& w, const Scratch& scratch, f32x16 label,
                                        f32x16 label_column, G* g, int64_t stride, uint32_t rows, int64_t c,
                                        int64_t n) {
  f32x16 tile[16];
  const f32x16 from_here = label_column - set1(static_cast<float>(c));
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    const int64_t column = full || i < n ? c + i : c;
    const mask16 here = from_here == set1(static_cast<float>(i));
    tile[i] = gradient_of<power, teacher, false>(w, scratch, column * 16) - keep(here, label);
  }
  transpose(tile);
  for (int r = 0; r < 16; r++) {
    G* const to = g + r * stride + c;
    if (full) {
      __builtin_prefetch(to + 16 * stride, 1);  // where the next 16 rows go
      store(to, tile[r]);
    } else if ((rows >> r & 1) != 0) {
      store_n(to, tile[r], n);
    }
  }
}

template <int power, bool teacher, class G>
void write_columns(const Weights& given, const Scratch& from, f32x16 label, f32x16 label_column, G* g,
                   int64_t stride, uint32_t rows, int64_t classes) {
  const Weights w = given;  // out of reach of the stores
  const Scratch scratch = from;
  for (int64_t c = 0; c < classes; c += 16) {
    const int64_t n = classes - c < 16 ? classes - c : 16;
    if (n == 16 && rows == all_rows) {
      write_tile<true, power, teacher>(w, scratch, label, label_column, g, stride, rows, c, n);
    } else {
      write_tile<false, power, teacher>(w, scratch, label, label_column, g, stride, rows, c, n);
    }
  }
}

void wide_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory);

// At most 16 rows.
void narrow_group(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  alignas(64) float s[narrow * 16], t[narrow * 16], h[narrow * 16], d[narrow * 16];
  const Scratch scratch{s, plan.teacher_used ? t : nullptr, plan.power == 0 ? h : nullptr,
                        a.bound.data != nullptr ? d : nullptr};
  uint32_t rows = (1u << count) - 1;
  if (a.row_mask != nullptr || (!plan.teacher_used && a.bound.data == nullptr)) {
    for (int64_t r = 0; r < count; r++) {
      if (looked_at(plan, first + r)) continue;
      rows &= ~(1u << r);
      fill_row(plan, first + r, 0);
    }
  }
  const Ranges s_range = load_columns(a.student, first, rows, a.classes, s);
  const Ranges t_range =
      plan.teacher_used ? load_columns(a.teacher, first, rows, a.classes, t) : Ranges{set1(0.0f), set1(0.0f)};

  // Far logits take the way of wide rows.
  const float scale = plan.hard.high > plan.soft.high ? plan.hard.high : plan.soft.high;
  const f32x16 limit = set1(static_cast<float>(far_exponent)), largest = set1(largest_float);
  const mask16 finite_s = abs(s_range.max) <= largest, finite_t = abs(t_range.max) <= largest;
  mask16 near = abs(s_range.max) * set1(scale) < limit;
  if (plan.teacher_used) {
    near = near & (abs(t_range.max) * set1(scale) < limit) & (set1(plan.soft.lowest) <= s_range.min);
  }
  const uint32_t far_rows = rows & bits_of(finite_s & finite_t & ~near);
  rows &= ~far_rows;

  WideSum bound = no_sum();
  if (a.bound.data != nullptr) {
    load_columns(a.bound, first, rows, a.classes, d);
    for (int64_t i = 0; i < a.classes; i++) {
      const f32x16 v = excess_of(load(s + i * 16), load(d + i * 16));
      store(d + i * 16, v);
      add_square(bound, v);
    }
  }
  const f32x16 s_exponent = exponent_of(plan.soft, s_range.max),
               t_exponent = exponent_of(plan.soft, t_range.max);
  const f32x16 h_exponent = exponent_of(plan.hard, s_range.max);
  const Constants c = constants_of(plan, s_exponent, t_exponent, h_exponent);
  mask16 normal = is_normal(plan.soft, s_range.min, s_exponent);
  if (plan.teacher_used) normal = normal & is_normal(plan.soft, t_range.min, t_exponent);
  if (plan.power == 0) normal = normal & is_normal(plan.hard, s_range.min, h_exponent);
  const Sums sums = with_power(plan, [&](auto powers) {
    constexpr int power = decltype(powers)::power;
    constexpr bool teacher = decltype(powers)::teacher;
    return any(~normal) ? sum_columns<power, teacher, false>(c, a.classes, scratch)
                        : sum_columns<power, teacher, true>(c, a.classes, scratch);
  });

  GroupSums g;
  clear(g, first);
  const auto widen = [](f32x16 v, double* to) {
    store(to, low_f64(v));
    store(to + 8, high_f64(v));
  };
  widen(sums.student, g.student);
  widen(sums.hard, g.hard);
  if (plan.teacher_used) {
    widen(sums.teacher, g.teacher);
    widen(sums.difference, g.difference);
  }
  widen(plan.power == 0 ? h_exponent : s_exponent * set1(static_cast<float>(plan.power)), g.hard_exponent);
  store(g.bound, bound.low);
  store(g.bound + 8, bound.high);
  g.rows = rows;
  g.student_lost = rows & bits_of(~(finite_s & (sums.student <= largest) & (sums.hard <= largest)));
  if (plan.teacher_used) g.teacher_lost = rows & bits_of(~(finite_t & (sums.teacher <= largest)));
  float label_columns[kd_group];
  for (int r = 0; r < kd_group; r++) label_columns[r] = -1;
  if (plan.labels_used) {
    for (uint32_t left = rows; left != 0; left &= left - 1) {
      const int r = __builtin_ctz(left);
      const int64_t column = a.labels[first + r];
      if (column == a.ignore_index) continue;
      g.column[r] = column;
      label_columns[r] = static_cast<float>(column);
      g.label_logit[r] = element(a.student.dtype, row_of(a.student, first + r), column);
    }
  }
  GroupCoefficients coefficients;
  finish_group(plan, g, coefficients);

  if (a.gradient != nullptr) {
    const f32x16 one = set1(1.0f);
    const Weights weights{load(coefficients.student),
                          load(coefficients.teacher),
                          load(coefficients.hard),
                          set1(static_cast<float>(plan.bound_weight)),
                          one,
                          one,
                          one};
    const uint32_t lost = rows & coefficients.lost;
    with_power(plan, [&](auto powers) {
      constexpr int power = decltype(powers)::power;
      constexpr bool teacher = decltype(powers)::teacher;
      with_gradient(plan, first, 0, [&](auto* to) {
        write_columns<power, teacher>(weights, scratch, load(coefficients.label), load(label_columns), to,
                                      a.gradient_stride, rows & ~lost, a.classes);
      });
    });
    for (uint32_t left = lost; left != 0; left &= left - 1)
      fill_row(plan, first + __builtin_ctz(left), __builtin_nanf(""));
  }
  for (uint32_t left = far_rows; left != 0; left &= left - 1)
    wide_rows(plan, first + __builtin_ctz(left), 1, memory);
}

}  // namespace
