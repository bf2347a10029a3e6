// kd_softmax_loss, rows of more than `narrow` columns: the lanes are columns.
//
// A row is cut into segments of kd_segment columns. The maximum of a segment is found, its exponentials are
// computed relative to it and kept in scratch memory (L1 or L2), and the gradient is a weighted sum of those:
// logits come from memory once and the gradient goes there once. The gradient of a long row is written
// between the blocks of the next one: what memory takes to store hides behind arithmetic. Powers of two with
// an integer in place of the maximum bring the sums of different segments together exactly; sums in float
// over at most 16 vectors, in double from there. Bulk: 16 columns a turn; tail: the same, with the lanes
// beyond it set to zero.
#pragma once
#include "kd_softmax_loss_group.h"

namespace {

constexpr int64_t block = 256;  // columns whose sums are formed in float
// Exponentials of two rows, one measured and one written, stay in the second cache up to this.
constexpr int64_t two_rows_bytes = int64_t{768} << 10;

struct Segment {
  int64_t first, n;
};
int64_t segments_of(const KdPlan& plan) {
  return (plan.arguments.classes + kd_segment - 1) / kd_segment;
}
Segment segment_of(const KdPlan& plan, int64_t k) {
  const int64_t first = k * kd_segment, left = plan.arguments.classes - first;
  return {first, left < kd_segment ? left : kd_segment};
}

// ---- Scratch memory of a row: `arrays` of `pitch` floats

int64_t pitch_of(const KdPlan& plan) {
  return (plan.arguments.classes + 31) & ~int64_t{15};
}
int64_t arrays_of(const KdPlan& plan) {
  return 1 + (plan.teacher_used ? 1 : 0) + (plan.power == 0 ? 1 : 0) +
         (plan.arguments.bound.data != nullptr ? 1 : 0);
}
// That of a row from column `first` on.
Scratch scratch_of(const KdPlan& plan, float* memory, int64_t first) {
  const int64_t pitch = pitch_of(plan);
  float* next = memory + first;
  const auto take = [&](bool used) {
    float* array = used ? next : nullptr;
    if (used) next += pitch;
    return array;
  };
  Scratch scratch;
  scratch.student = take(true);
  scratch.teacher = take(plan.teacher_used);
  scratch.hard = take(plan.power == 0);
  scratch.excess = take(plan.arguments.bound.data != nullptr);
  return scratch;
}

// Rows that are measured before the first of them is written.
int64_t rows_in_scratch(const KdPlan& plan) {
  if (segments_of(plan) == 1) return kd_group;
  return 2 * arrays_of(plan) * pitch_of(plan) * 4 <= two_rows_bytes ? 2 : 1;
}

static_assert(sizeof(KdSegmentSums) <= 128, "two cache lines of scratch memory a segment");
int64_t row_floats(const KdPlan& plan) {
  return arrays_of(plan) * pitch_of(plan) + 32 * segments_of(plan);
}
int64_t scratch_floats(const KdPlan& plan) {
  return rows_in_scratch(plan) * row_floats(plan);
}
// The sums of a row's segments lie behind its exponentials.
KdSegmentSums* sums_of(const KdPlan& plan, float* memory) {
  return reinterpret_cast<KdSegmentSums*>(memory + arrays_of(plan) * pitch_of(plan));
}

// 2^n for an integer n <= 0; 0 below -1022, which is nothing beside 1, and for a NaN.
double power_of_two(double n) {
  if (!(n >= -1022)) return 0;
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52;
  double x;
  __builtin_memcpy(&x, &bits, 8);
  return x;
}

// ---- The gradient of one segment

// Written piece after piece, from the front.
struct SegmentGradient {
  // Writes on, up to column `limit` <= n at least where that is n, else in whole vectors.
  void (*write)(SegmentGradient&, int64_t limit);
  Weights weights;
  Scratch scratch;
  void* gradient;
  int64_t n, at;
  int64_t label;  // its column, or one outside the segment
  f32x16 label_weight;
  bool past_cache;
};

template <class G>
ESP_INLINE void put(G* p, f32x16 v, bool) {
  store(p, v);
}
ESP_INLINE void put(float* p, f32x16 v, bool past_cache) {
  if (past_cache) {
    stream(p, v);
  } else {
    store(p, v);
  }
}

template <int power, bool teacher, bool scaled, class G>
void write_gradient(SegmentGradient& segment, int64_t limit) {
  G* const g = static_cast<G*>(segment.gradient);
  const Weights w = segment.weights;  // out of reach of the stores
  const Scratch scratch = segment.scratch;
  const int64_t start = segment.at, n = segment.n;
  int64_t i = start;
  if (segment.past_cache) {
    if (i == 0) {  // up to a line
      i = static_cast<int64_t>((-reinterpret_cast<uintptr_t>(g) & 63) / sizeof(G));
      store_n(g, gradient_of<power, teacher, scaled>(w, scratch, 0), i);
    }
    for (; i + 16 <= limit; i += 16) put(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), true);
  } else {
    for (; i + 16 <= limit; i += 16) put(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), false);
  }
  if (limit == n && i < n) {
    store_n(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), n - i);
    i = n;
  }
  segment.at = i;
  if (start <= segment.label && segment.label < i) {
    const f32x16 there = gradient_of<power, teacher, scaled>(w, scratch, segment.label);
    store_n(g + segment.label, there - segment.label_weight, 1);
  }
}

SegmentGradient gradient_of_segment(const KdPlan& plan, int64_t row, int64_t k, float* memory,
                                    const KdSegmentSums& sums, const KdCoefficients& c) {
  const Segment segment = segment_of(plan, k);
  const bool scaled = sums.student_exponent != 0 || sums.teacher_exponent != 0 || sums.hard_exponent != 0;
  SegmentGradient result;
  result.weights = {set1(c.student),
                    set1(c.teacher),
                    set1(c.hard),
                    set1(c.bound),
                    set1(static_cast<float>(power_of_two(sums.student_exponent))),
                    set1(static_cast<float>(power_of_two(sums.teacher_exponent))),
                    set1(static_cast<float>(power_of_two(sums.hard_exponent)))};
  result.scratch = scratch_of(plan, memory, segment.first);
  result.n = segment.n;
  result.at = 0;
  result.label = c.column < 0 ? -1 : c.column - segment.first;
  result.label_weight = set1(c.label);
  with_power(plan, [&](auto powers) {
    constexpr int power = decltype(powers)::power;
    constexpr bool teacher = decltype(powers)::teacher;
    with_gradient(plan, row, segment.first, [&](auto* g) {
      using G = typename Pointed<decltype(g)>::Type;
      result.gradient = g;
      result.past_cache =
          plan.stream && sizeof(G) == 4 && segment.n >= 64 && reinterpret_cast<uintptr_t>(g) % sizeof(G) == 0;
      result.write =
          scaled ? write_gradient<power, teacher, true, G> : write_gradient<power, teacher, false, G>;
    });
  });
  return result;
}

// ---- The sums of one segment

struct Range {
  float max, min;
};

// Maximum and minimum of n >= 1 logits less base; copy receives those as floats. `plain`: base is 0 and there
// is no copy.
template <bool plain, class T>
Range scan(const T* p, int64_t n, float base, float* copy) {
  f32x16 most[4], least[4];
  for (int k = 0; k < 4; k++) {
    most[k] = set1(-infinity);
    least[k] = set1(infinity);
  }
  const f32x16 shift = set1(base);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int k = 0; k < 4; k++) {
      f32x16 v = load(p + i + 16 * k);
      prefetch(p + i + 16 * k);
      if (!plain) {
        v = v - shift;
        store(copy + i + 16 * k, v);
      }
      most[k] = max(v, most[k]);
      least[k] = min(v, least[k]);
    }
  }
  for (; i < n; i += 16) {
    const int64_t left = n - i < 16 ? n - i : 16;
    f32x16 v = load_n(p + i, left);
    if (!plain) {
      v = v - shift;
      store(copy + i, v);
    }
    const mask16 inside = first_lanes(left);
    most[0] = max(select(inside, v, most[0]), most[0]);
    least[0] = min(select(inside, v, least[0]), least[0]);
  }
  const f32x16 a = max(max(most[0], most[1]), max(most[2], most[3]));
  const f32x16 b = min(min(least[0], least[1]), min(least[2], least[3]));
  return {reduce_max(a), reduce_min(b)};
}

// `floats` becomes where the logits less base are as floats: in place or in the copy.
Range scan(esp_dtype dtype, const char* p, int64_t n, float base, float* copy, const float** floats) {
  if (dtype == ESP_F32 && base == 0) {
    *floats = reinterpret_cast<const float*>(p);
    return scan<true>(*floats, n, base, copy);
  }
  *floats = copy;
  return with_dtype(dtype, [&](auto element) {
    return scan<false>(reinterpret_cast<const decltype(element)*>(p), n, base, copy);
  });
}

// Where the segment after this one lies: read while this one is computed.
struct Ahead {
  const char *student, *teacher;  // or nullptr
  int64_t student_size, teacher_size;
};

template <int power, bool teacher, bool normal>
void sum_segment(const Constants& given, const float* s, const float* t, int64_t n, const Scratch& to,
                 const Ahead& ahead, SegmentGradient* beside, KdSegmentSums* result) {
  const Constants c = given;  // out of reach of the stores
  const Scratch scratch = to;
  WideSum student = no_sum(), teachers = no_sum(), hard = no_sum(), difference = no_sum();
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = n - start < block ? n : start + block;
    Sums sums = no_sums();
    int64_t i = start;
    for (; i + 16 <= end; i += 16) {
      if (ahead.student != nullptr) {
        __builtin_prefetch(ahead.student + i * ahead.student_size, 0, 2);
        if constexpr (teacher) __builtin_prefetch(ahead.teacher + i * ahead.teacher_size, 0, 2);
      }
      exponentials<power, teacher, normal, true>(c, load(s + i), teacher ? load(t + i) : set1(0.0f),
                                                 first_lanes(16), scratch, i, sums);
    }
    if (i < end) {
      exponentials<power, teacher, normal, false>(c, load_n(s + i, end - i),
                                                  teacher ? load_n(t + i, end - i) : set1(0.0f),
                                                  first_lanes(end - i), scratch, i, sums);
    }
    add(student, sums.student);
    if constexpr (teacher) {
      add(teachers, sums.teacher);
      add(difference, sums.difference);
    }
    if constexpr (power != 1) add(hard, sums.hard);
    if (beside != nullptr) beside->write(*beside, end);
  }
  result->student = total(student);
  result->teacher = teacher ? total(teachers) : 1.0;
  result->difference = teacher ? total(difference) : 0.0;
  result->hard = power == 1 ? result->student : total(hard);
}

// The sum of the squares of max(0, s - b), which go to scratch memory.
template <class S, class B>
double sum_excess(const S* s, const B* b, int64_t n, float* excess) {
  WideSum sum{zero_f64(), zero_f64()};
  for (int64_t i = 0; i < n; i += 16) {
    const bool whole = n - i >= 16;
    const f32x16 v =
        whole ? excess_of(load(s + i), load(b + i)) : excess_of(load_n(s + i, n - i), load_n(b + i, n - i));
    store(excess + i, v);
    add_square(sum, v);
  }
  return total(sum);
}
double sum_excess(esp_dtype s_dtype, const char* s, esp_dtype b_dtype, const char* b, int64_t n,
                  float* excess) {
  return with_dtype(s_dtype, [&](auto of_s) {
    return with_dtype(b_dtype, [&](auto of_b) {
      return sum_excess(reinterpret_cast<const decltype(of_s)*>(s),
                        reinterpret_cast<const decltype(of_b)*>(b), n, excess);
    });
  });
}

// Subtracted from the logits of a row; `exact` where logits lie so far apart that the terms of kl need their
// own pass.
struct Base {
  float student, teacher;
  bool exact;
};

// `beside`: the same segment of a row that is measured already, or nullptr; written meanwhile.
void measure_segment(const KdPlan& plan, int64_t row, int64_t k, const Base& base, float* memory,
                     bool look_ahead, SegmentGradient* beside, KdSegmentSums* sums) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  const Segment segment = segment_of(plan, k);
  const int64_t n = segment.n;
  alignas(64) float copies[2][kd_segment];
  const Scratch scratch = scratch_of(plan, memory, segment.first);
  const char* s_row = row_of(a.student, row) + segment.first * size_of(a.student.dtype);
  const char* t_row =
      plan.teacher_used ? row_of(a.teacher, row) + segment.first * size_of(a.teacher.dtype) : nullptr;
  const float *s, *t = nullptr;
  const Range s_range = scan(a.student.dtype, s_row, n, base.student, copies[0], &s);
  const Range t_range =
      plan.teacher_used ? scan(a.teacher.dtype, t_row, n, base.teacher, copies[1], &t) : Range{0, 0};
  sums->student_max = s_range.max;
  sums->student_min = s_range.min;
  sums->teacher_max = t_range.max;

  const float s_exponent = exponent_of(plan.soft, s_range.max);
  const float t_exponent = exponent_of(plan.soft, t_range.max);
  const float h_exponent = exponent_of(plan.hard, s_range.max);
  const Constants c = constants_of(plan, set1(s_exponent), set1(t_exponent), set1(h_exponent));
  const bool normal = is_normal(plan.soft, s_range.min, s_exponent) &&
                      (!plan.teacher_used || is_normal(plan.soft, t_range.min, t_exponent)) &&
                      (plan.power != 0 || is_normal(plan.hard, s_range.min, h_exponent));
  sums->student_exponent = s_exponent;
  sums->teacher_exponent = plan.teacher_used ? t_exponent : 0;
  sums->hard_exponent = plan.power == 0 ? double{h_exponent} : plan.power * double{s_exponent};

  Ahead ahead{nullptr, nullptr, size_of(a.student.dtype), size_of(a.teacher.dtype)};
  if (look_ahead) {
    ahead.student = s_row + (n == kd_segment ? n : a.student.stride - segment.first) * ahead.student_size;
    if (t_row != nullptr)
      ahead.teacher = t_row + (n == kd_segment ? n : a.teacher.stride - segment.first) * ahead.teacher_size;
  }
  with_power(plan, [&](auto powers) {
    constexpr int power = decltype(powers)::power;
    constexpr bool teacher = decltype(powers)::teacher;
    if (normal) {
      sum_segment<power, teacher, true>(c, s, t, n, scratch, ahead, beside, sums);
    } else {
      sum_segment<power, teacher, false>(c, s, t, n, scratch, ahead, beside, sums);
    }
  });
  if (base.exact && plan.teacher_used) {
    double difference = 0;
    const double offset = sums->teacher_exponent - sums->student_exponent;
    for (int64_t i = 0; i < n; i++) {
      const double w = scratch.teacher[i];
      if (w != 0) difference += w * ((double{t[i]} - double{s[i]}) * plan.soft.scale - offset);
    }
    sums->difference = difference;
  }
  sums->bound = 0;
  if (scratch.excess != nullptr) {
    sums->bound =
        sum_excess(a.student.dtype, s_row, a.bound.dtype,
                   row_of(a.bound, row) + segment.first * size_of(a.bound.dtype), n, scratch.excess);
  }
}

// ---- Rows

bool is_finite(double x) {
  return __builtin_fabs(x) <= 0x1.fffffffffffffp1023;
}

// Brings the segments of a row together, exactly: the parts differ by powers of two. Rows whose logits are
// far from 0 or far apart are measured again in the way that bears it.
void settle(const KdPlan& plan, int64_t row, float* memory, KdSegmentSums* sums, GroupSums& g) {
  const int lane = static_cast<int>(row - g.first);
  const int64_t segments = segments_of(plan);
  float s_max = -infinity, t_max = -infinity, s_min = infinity;
  for (int64_t k = 0; k < segments; k++) {
    s_max = sums[k].student_max > s_max ? sums[k].student_max : s_max;
    t_max = sums[k].teacher_max > t_max ? sums[k].teacher_max : t_max;
    s_min = sums[k].student_min < s_min ? sums[k].student_min : s_min;
  }
  const bool s_finite = is_finite(double{s_max}), t_finite = is_finite(double{t_max});
  const double scale = plan.hard.scale > plan.soft.scale ? plan.hard.scale : plan.soft.scale;
  const bool s_far = s_finite && __builtin_fabs(double{s_max}) * scale >= far_exponent;
  const bool t_far = plan.teacher_used && t_finite && __builtin_fabs(double{t_max}) * scale >= far_exponent;
  const bool apart = plan.teacher_used && s_min < plan.soft.lowest;
  const Base base{s_far ? s_max : 0.0f, t_far ? t_max : 0.0f, true};
  if (s_finite && t_finite && (s_far || t_far || apart)) {
    for (int64_t k = 0; k < segments; k++)
      measure_segment(plan, row, k, base, memory, false, nullptr, sums + k);
  }

  double s_exponent = sums[0].student_exponent, t_exponent = sums[0].teacher_exponent;
  double h_exponent = sums[0].hard_exponent;
  for (int64_t k = 1; k < segments; k++) {
    s_exponent = sums[k].student_exponent > s_exponent ? sums[k].student_exponent : s_exponent;
    t_exponent = sums[k].teacher_exponent > t_exponent ? sums[k].teacher_exponent : t_exponent;
    h_exponent = sums[k].hard_exponent > h_exponent ? sums[k].hard_exponent : h_exponent;
  }
  double student = 0, teacher = 0, hard = 0, difference = 0, bound = 0;
  for (int64_t k = 0; k < segments; k++) {
    KdSegmentSums& part = sums[k];
    part.student_exponent -= s_exponent;  // from here on relative to the row's
    part.teacher_exponent -= t_exponent;
    part.hard_exponent -= h_exponent;
    const double weight = power_of_two(part.teacher_exponent);
    student += part.student * power_of_two(part.student_exponent);
    teacher += part.teacher * weight;
    hard += part.hard * power_of_two(part.hard_exponent);
    if (weight != 0) {
      const double shift = part.teacher_exponent - part.student_exponent;
      difference += weight * (part.difference + shift * part.teacher);
    }
    bound += part.bound;
  }
  g.rows |= 1u << lane;
  g.student[lane] = student;
  g.teacher[lane] = teacher;
  g.hard[lane] = hard;
  g.difference[lane] = difference;
  g.bound[lane] = bound;
  g.hard_exponent[lane] = h_exponent;
  g.base[lane] = base.student;
  if (!s_finite || !is_finite(student) || !is_finite(hard)) g.student_lost |= 1u << lane;
  if (!t_finite || !is_finite(teacher)) g.teacher_lost |= 1u << lane;
  g.column[lane] = label_of(plan, row);
  if (g.column[lane] >= 0) {
    g.label_logit[lane] =
        element(plan.arguments.student.dtype, row_of(plan.arguments.student, row), g.column[lane]);
  }
}

// A row that is measured, but not yet written.
struct Measured {
  int64_t row = -1;  // none
  float* memory;
  KdCoefficients coefficients;
};

SegmentGradient gradient_of_segment(const KdPlan& plan, const Measured& m, int64_t k) {
  return gradient_of_segment(plan, m.row, k, m.memory, sums_of(plan, m.memory)[k], m.coefficients);
}

void write_row(const KdPlan& plan, const Measured& m) {
  if (m.row < 0 || plan.arguments.gradient == nullptr) return;
  if (m.coefficients.lost) return fill_row(plan, m.row, __builtin_nanf(""));
  for (int64_t k = 0; k < segments_of(plan); k++) {
    SegmentGradient g = gradient_of_segment(plan, m, k);
    g.write(g, g.n);
  }
}

// Rows of one segment: 16 are measured, then written.
void middle_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  for (int64_t start = first; start < first + count; start += kd_group) {
    const int64_t rows = first + count - start < kd_group ? first + count - start : kd_group;
    GroupSums g;
    GroupCoefficients coefficients;
    clear(g, start);
    for (int64_t r = 0; r < rows; r++) {
      float* row_memory = memory + r * row_floats(plan);
      if (!looked_at(plan, start + r)) {
        fill_row(plan, start + r, 0);
        continue;
      }
      const bool ahead = start + r + 1 < first + count;
      measure_segment(plan, start + r, 0, {0, 0, false}, row_memory, ahead, nullptr,
                      sums_of(plan, row_memory));
      settle(plan, start + r, row_memory, sums_of(plan, row_memory), g);
    }
    finish_group(plan, g, coefficients);
    for (uint32_t left = g.rows; left != 0; left &= left - 1) {
      const int r = __builtin_ctz(left);
      write_row(plan, {start + r, memory + r * row_floats(plan), coefficients_of(plan, g, coefficients, r)});
    }
  }
}

// Rows of several segments: each is written while the next is measured, where both find room.
void long_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  const int64_t segments = segments_of(plan);
  Measured before;
  for (int64_t row = first; row < first + count; row++) {
    if (!looked_at(plan, row)) {
      fill_row(plan, row, 0);
      continue;
    }
    Measured now;
    now.row = row;
    now.memory = before.row >= 0 && before.memory == memory ? memory + row_floats(plan) : memory;
    KdSegmentSums* sums = sums_of(plan, now.memory);
    const bool beside = before.row >= 0 && plan.arguments.gradient != nullptr && !before.coefficients.lost;
    for (int64_t k = 0; k < segments; k++) {
      SegmentGradient g;
      if (beside) g = gradient_of_segment(plan, before, k);
      const bool ahead = plan.stream && (k + 1 < segments || row + 1 < first + count);
      measure_segment(plan, row, k, {0, 0, false}, now.memory, ahead, beside ? &g : nullptr, sums + k);
    }
    if (!beside) write_row(plan, before);  // nothing, or NaN
    GroupSums g;
    GroupCoefficients coefficients;
    clear(g, row);
    settle(plan, row, now.memory, sums, g);
    finish_group(plan, g, coefficients);
    now.coefficients = coefficients_of(plan, g, coefficients, 0);
    before = now;
    if (rows_in_scratch(plan) == 1) {
      write_row(plan, before);
      before.row = -1;
    }
  }
  write_row(plan, before);
}

void wide_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  if (segments_of(plan) == 1) {
    middle_rows(plan, first, count, memory);
  } else {
    long_rows(plan, first, count, memory);
  }
}

}  // namespace
