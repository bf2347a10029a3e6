// kd_softmax_loss, rows of logits [C]: sums of exponentials, then loss terms and coefficients, then the
// gradient
//
//   g = student * 2^(s c + ..) + hard * 2^(s c1 + ..) - teacher * 2^(t c + ..) + bound * max(0, s - b) -
//   label * 1_y
//
// Layout: a row is cut into segments of kd_segment columns. The maximum of a segment is found, its
// exponentials are computed relative to it and kept in scratch memory (L1 or L2), and the gradient is a
// weighted sum of those: logits come from memory once and the gradient goes there once. Rows of at most
// `narrow` columns are transposed, 16 rows at a time, so that the lanes are rows, sums need no reduction, and
// no lane is wasted. Numerics: powers of two with an integer in place of the maximum, so that sums of
// different segments are brought together exactly; sums in float over at most 16 vectors, in double from
// there. At T = 2 and 4 the exponential at temperature 1 is a power of the one at T. Bytes: 12 an element
// (F32). Bulk: 16 columns a turn; tail: the same, with the lanes beyond it set to zero.
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

constexpr int64_t narrow = 32;
constexpr int64_t block = 256;  // columns whose sums are formed in float
constexpr float infinity = __builtin_inff();
constexpr double ln2 = 0x1.62e42fefa39efp-1;
constexpr double far_exponent = 0x1p19;  // beyond, logits are taken relative to their maximum first

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

ESP_INLINE mask16 lanes_below(int64_t n) {
  return mask_of(static_cast<uint16_t>((1u << n) - 1));
}  // 0 <= n <= 16

// ---- Scratch memory of a row: `arrays` of `pitch` floats

int64_t pitch_of(const KdPlan& plan) {
  return (plan.arguments.classes + 31) & ~int64_t{15};
}
struct Scratch {
  float *student, *teacher, *hard, *excess;  // exponentials and max(0, s - b), nullptr where not used
};
int64_t arrays_of(const KdPlan& plan) {
  return 1 + (plan.teacher_used ? 1 : 0) + (plan.power == 0 ? 1 : 0) +
         (plan.arguments.bound.data != nullptr ? 1 : 0);
}
Scratch scratch_of(const KdPlan& plan, float* memory) {
  const int64_t pitch = pitch_of(plan);
  Scratch scratch{memory, nullptr, nullptr, nullptr};
  float* next = memory + pitch;
  if (plan.teacher_used) {
    scratch.teacher = next;
    next += pitch;
  }
  if (plan.power == 0) {
    scratch.hard = next;
    next += pitch;
  }
  if (plan.arguments.bound.data != nullptr) scratch.excess = next;
  return scratch;
}

// ---- One segment

struct Range {
  float max, min;
};

// Maximum and minimum of n >= 1 logits less base; copy (or nullptr) receives those as floats.
template <class T>
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
      const f32x16 v = load(p + i + 16 * k) - shift;
      prefetch(p + i + 16 * k);
      if (copy != nullptr) store(copy + i + 16 * k, v);
      most[k] = max(v, most[k]);
      least[k] = min(v, least[k]);
    }
  }
  for (; i < n; i += 16) {
    const int64_t left = n - i < 16 ? n - i : 16;
    const f32x16 v = load_n(p + i, left) - shift;
    if (copy != nullptr) store(copy + i, v);
    const mask16 inside = lanes_below(left);
    most[0] = max(select(inside, v, most[0]), most[0]);
    least[0] = min(select(inside, v, least[0]), least[0]);
  }
  const f32x16 a = max(max(most[0], most[1]), max(most[2], most[3]));
  const f32x16 b = min(min(least[0], least[1]), min(least[2], least[3]));
  return {reduce_max(a), reduce_min(b)};
}

Range scan(esp_dtype dtype, const char* p, int64_t n, float base, float* copy) {
  switch (dtype) {
    case ESP_BF16:
      return scan(reinterpret_cast<const bf16*>(p), n, base, copy);
    case ESP_F16:
      return scan(reinterpret_cast<const f16*>(p), n, base, copy);
    default:
      return scan(reinterpret_cast<const float*>(p), n, base, copy);
  }
}

struct Sums {
  f32x16 student, teacher, hard, difference;
};

struct Constants {
  f32x16 high, low, lowest, student_origin, teacher_origin;  // at T
  f32x16 hard_high, hard_low, hard_lowest, hard_origin;      // at 1, where power is 0
};

Constants constants_of(const KdPlan& plan) {
  Constants c;
  c.high = set1(plan.soft.high);
  c.low = set1(plan.soft.low);
  c.lowest = set1(plan.soft.lowest);
  c.hard_high = set1(plan.hard.high);
  c.hard_low = set1(plan.hard.low);
  c.hard_lowest = set1(plan.hard.lowest);
  c.student_origin = c.teacher_origin = c.hard_origin = set1(0.0f);
  return c;
}

// The T-th power.
template <int power>
ESP_INLINE f32x16 hard_of(f32x16 student) {
  if constexpr (power == 1) return student;
  const f32x16 square = student * student;
  if constexpr (power == 2) return square;
  return square * square;
}

// The exponentials of 16 logits to scratch memory at i, and their sums.
template <int power, bool teacher, bool whole>
ESP_INLINE_IN_REGISTERS void exponentials(const Constants& c, f32x16 s, f32x16 t, mask16 inside, const Scratch& scratch,
                             int64_t i, Sums& sums) {
  // The limit first, so that a NaN passes.
  const Power p = exp2_scaled(max(c.lowest, s), c.high, c.low, c.student_origin);
  const f32x16 x = whole ? p.value : keep(inside, p.value);
  store(scratch.student + i, x);
  sums.student = sums.student + x;
  if constexpr (teacher) {
    const Power q = exp2_scaled(max(c.lowest, t), c.high, c.low, c.teacher_origin);
    const f32x16 w = whole ? q.value : keep(inside, q.value);
    store(scratch.teacher + i, w);
    sums.teacher = sums.teacher + w;
    // log2 of the quotient; integers and fractions apart, or it would have the error of the logits.
    const f32x16 quotient = (q.exponent - p.exponent) + (q.fraction - p.fraction);
    sums.difference = fma(w, quotient, sums.difference);
  }
  if constexpr (power == 0) {
    const Power h = exp2_scaled(max(c.hard_lowest, s), c.hard_high, c.hard_low, c.hard_origin);
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
  double lanes[8];
  store(lanes, sum.low + sum.high);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Where the segment after this one lies: read while this one is computed.
struct Ahead {
  const char *student, *teacher;  // or nullptr
  int64_t student_size, teacher_size;
};

template <int power, bool teacher>
void sum_segment(const Constants& c, const float* s, const float* t, int64_t n, const Scratch& scratch,
                 const Ahead& ahead, KdSegmentSums* result) {
  const WideSum zero{zero_f64(), zero_f64()};
  WideSum student = zero, teachers = zero, hard = zero, difference = zero;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = n - start < block ? n : start + block;
    Sums sums{set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
    int64_t i = start;
    for (; i + 16 <= end; i += 16) {
      if (ahead.student != nullptr) {
        __builtin_prefetch(ahead.student + i * ahead.student_size, 0, 2);
        if constexpr (teacher) __builtin_prefetch(ahead.teacher + i * ahead.teacher_size, 0, 2);
      }
      exponentials<power, teacher, true>(c, load(s + i), teacher ? load(t + i) : set1(0.0f), lanes_below(16),
                                         scratch, i, sums);
    }
    if (i < end) {
      exponentials<power, teacher, false>(c, load_n(s + i, end - i),
                                          teacher ? load_n(t + i, end - i) : set1(0.0f), lanes_below(end - i),
                                          scratch, i, sums);
    }
    add(student, sums.student);
    if constexpr (teacher) {
      add(teachers, sums.teacher);
      add(difference, sums.difference);
    }
    if constexpr (power != 1) add(hard, sums.hard);
  }
  result->student = total(student);
  result->teacher = teacher ? total(teachers) : 1.0;
  result->difference = teacher ? total(difference) : 0.0;
  result->hard = power == 1 ? result->student : total(hard);
}

// max(0, s - b) to scratch memory and the sum of its squares; a bound of -inf bounds nothing.
ESP_INLINE f32x16 excess_of(f32x16 s, f32x16 b) {
  return keep(~(b == set1(-infinity)), max(set1(0.0f), s - b));  // the limit first, so that a NaN passes
}
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
template <class S>
double sum_excess(const S* s, esp_dtype dtype, const char* b, int64_t n, float* excess) {
  switch (dtype) {
    case ESP_BF16:
      return sum_excess(s, reinterpret_cast<const bf16*>(b), n, excess);
    case ESP_F16:
      return sum_excess(s, reinterpret_cast<const f16*>(b), n, excess);
    default:
      return sum_excess(s, reinterpret_cast<const float*>(b), n, excess);
  }
}
double sum_excess(esp_dtype s_dtype, const char* s, esp_dtype b_dtype, const char* b, int64_t n,
                  float* excess) {
  switch (s_dtype) {
    case ESP_BF16:
      return sum_excess(reinterpret_cast<const bf16*>(s), b_dtype, b, n, excess);
    case ESP_F16:
      return sum_excess(reinterpret_cast<const f16*>(s), b_dtype, b, n, excess);
    default:
      return sum_excess(reinterpret_cast<const float*>(s), b_dtype, b, n, excess);
  }
}

// The integer that takes the place of the maximum.
ESP_INLINE float exponent_of(const KdExponential& e, float maximum) {
  return __builtin_rintf((maximum > e.lowest ? maximum : e.lowest) * e.high);
}

// Subtracted from the logits of a row; `exact` where logits lie so far apart that the terms of kl need their
// own pass.
struct Base {
  float student, teacher;
  bool exact;
};

void measure_segment(const KdPlan& plan, int64_t row, int64_t segment, const Base& base, float* memory,
                     bool look_ahead, KdSegmentSums* sums) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  const int64_t first = segment * kd_segment;
  const int64_t n = a.classes - first < kd_segment ? a.classes - first : kd_segment;
  alignas(64) float copies[2][kd_segment];
  Scratch scratch = scratch_of(plan, memory);
  scratch.student += first;
  if (scratch.teacher != nullptr) scratch.teacher += first;
  if (scratch.hard != nullptr) scratch.hard += first;

  const char* s_row = row_of(a.student, row) + first * size_of(a.student.dtype);
  const char* t_row = plan.teacher_used ? row_of(a.teacher, row) + first * size_of(a.teacher.dtype) : nullptr;
  const bool copy_s = a.student.dtype != ESP_F32 || base.student != 0;
  const bool copy_t = plan.teacher_used && (a.teacher.dtype != ESP_F32 || base.teacher != 0);
  const Range s_range = scan(a.student.dtype, s_row, n, base.student, copy_s ? copies[0] : nullptr);
  const Range t_range = plan.teacher_used
                            ? scan(a.teacher.dtype, t_row, n, base.teacher, copy_t ? copies[1] : nullptr)
                            : Range{0, 0};
  const float* s = copy_s ? copies[0] : reinterpret_cast<const float*>(s_row);
  const float* t = copy_t ? copies[1] : reinterpret_cast<const float*>(t_row);
  sums->student_max = s_range.max;
  sums->student_min = s_range.min;
  sums->teacher_max = t_range.max;

  const float s_exponent = exponent_of(plan.soft, s_range.max);
  const float t_exponent = plan.teacher_used ? exponent_of(plan.soft, t_range.max) : 0.0f;
  const float h_exponent = exponent_of(plan.hard, s_range.max);
  sums->student_exponent = s_exponent;
  sums->teacher_exponent = t_exponent;
  sums->hard_exponent = plan.power == 0 ? h_exponent : plan.power * double{s_exponent};
  Constants c = constants_of(plan);
  c.student_origin = set1(power_origin + (static_cast<float>(plan.soft.bias) - s_exponent));
  c.teacher_origin = set1(power_origin + (static_cast<float>(plan.soft.bias) - t_exponent));
  c.hard_origin = set1(power_origin + (static_cast<float>(plan.hard.bias) - h_exponent));

  Ahead ahead{nullptr, nullptr, size_of(a.student.dtype), size_of(a.teacher.dtype)};
  if (look_ahead) {
    ahead.student = s_row + (n == kd_segment ? n : a.student.stride - first) * ahead.student_size;
    if (t_row != nullptr)
      ahead.teacher = t_row + (n == kd_segment ? n : a.teacher.stride - first) * ahead.teacher_size;
  }
  if (!plan.teacher_used) {
    sum_segment<1, false>(c, s, t, n, scratch, ahead, sums);
  } else if (plan.power == 1) {
    sum_segment<1, true>(c, s, t, n, scratch, ahead, sums);
  } else if (plan.power == 2) {
    sum_segment<2, true>(c, s, t, n, scratch, ahead, sums);
  } else if (plan.power == 4) {
    sum_segment<4, true>(c, s, t, n, scratch, ahead, sums);
  } else {
    sum_segment<0, true>(c, s, t, n, scratch, ahead, sums);
  }
  if (base.exact && plan.teacher_used) {
    double difference = 0;
    const double offset = double{t_exponent} - double{s_exponent};
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
                   row_of(a.bound, row) + first * size_of(a.bound.dtype), n, scratch.excess + first);
  }
}

// ---- Up to 16 rows: loss terms and coefficients

struct GroupSums {
  double student[kd_group], teacher[kd_group], hard[kd_group], difference[kd_group], bound[kd_group];
  double hard_exponent[kd_group], base[kd_group];  // the maximum that was taken off, in two parts
  float label_logit[kd_group];
  bool student_lost[kd_group], teacher_lost[kd_group];
  int64_t row[kd_group];
  int64_t column[kd_group];
};

void clear(GroupSums& g) {
  for (int i = 0; i < kd_group; i++) {
    g.student[i] = g.teacher[i] = g.hard[i] = 1;
    g.difference[i] = g.bound[i] = g.hard_exponent[i] = g.base[i] = 0;
    g.label_logit[i] = 0;
    g.student_lost[i] = g.teacher_lost[i] = false;
    g.row[i] = g.column[i] = -1;
  }
}

bool is_finite(double x) {
  return __builtin_fabs(x) <= 0x1.fffffffffffffp1023;
}

// The rows' terms to the plan's arrays; lanes with row = -1 are left out.
void finish_group(const KdPlan& plan, const GroupSums& g, KdCoefficients* coefficients) {
  double log_student[kd_group], log_teacher[kd_group], log_hard[kd_group];
  double ce[kd_group], kl[kd_group], student[kd_group], teacher[kd_group], hard[kd_group];
  log16(g.hard, log_hard);
  log16(g.student, log_student);
  log16(g.teacher, log_teacher);
  for (int i = 0; i < kd_group; i++) {
    ce[i] =
        log_hard[i] + ln2 * (g.hard_exponent[i] - plan.hard.bias) + (g.base[i] - double{g.label_logit[i]});
    kl[i] =
        plan.temperature_squared * (ln2 * g.difference[i] / g.teacher[i] - log_teacher[i] + log_student[i]);
    kl[i] = kl[i] > 0 ? kl[i] : 0;  // it never is less, but rounding makes it
    student[i] = plan.soft_weight / g.student[i];
    teacher[i] = plan.soft_weight / g.teacher[i];
    hard[i] = plan.alpha / g.hard[i];
  }
  const bool one = plan.arguments.classes == 1;
  for (int i = 0; i < kd_group; i++) {
    if (g.row[i] < 0) continue;
    const bool valid = g.column[i] >= 0;
    const bool soft = plan.teacher_used;
    const double nan = __builtin_nan("");
    plan.ce[g.row[i]] = !valid ? 0 : g.student_lost[i] ? nan : one ? 0 : ce[i];
    plan.kl[g.row[i]] = !soft ? 0 : g.student_lost[i] || g.teacher_lost[i] ? nan : one ? 0 : kl[i];
    plan.bound[g.row[i]] = g.bound[i] != g.bound[i] ? nan : g.bound[i];
    KdCoefficients& c = coefficients[i];
    c.lost = g.student_lost[i] || g.teacher_lost[i] || g.bound[i] != g.bound[i];
    c.student = static_cast<float>((soft ? student[i] : 0) + (plan.power == 1 && valid ? hard[i] : 0));
    c.teacher = static_cast<float>(soft ? teacher[i] : 0);
    c.hard = static_cast<float>(plan.power != 1 && valid ? hard[i] : 0);
    c.bound = static_cast<float>(plan.bound_weight);
    c.label = static_cast<float>(valid ? plan.alpha : 0);
    c.column = g.column[i];
  }
}

// 2^n for an integer n <= 0; 0 below -1022, which is nothing beside 1, and for a NaN.
double power_of_two(double n) {
  if (!(n >= -1022)) return 0;
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52;
  double x;
  __builtin_memcpy(&x, &bits, 8);
  return x;
}

// Brings the segments of a row together, exactly: the parts differ by powers of two. Rows whose logits are
// far from 0 or far apart are measured again in the way that bears it.
void settle(const KdPlan& plan, int64_t row, float* memory, KdSegmentSums* sums, GroupSums& g, int lane) {
  const int64_t segments = (plan.arguments.classes + kd_segment - 1) / kd_segment;
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
  Base base{s_far ? s_max : 0.0f, t_far ? t_max : 0.0f, true};
  if (s_finite && t_finite && (s_far || t_far || apart)) {
    for (int64_t k = 0; k < segments; k++) measure_segment(plan, row, k, base, memory, false, sums + k);
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
  g.row[lane] = row;
  g.student[lane] = student;
  g.teacher[lane] = teacher;
  g.hard[lane] = hard;
  g.difference[lane] = difference;
  g.bound[lane] = bound;
  g.hard_exponent[lane] = h_exponent;
  g.base[lane] = base.student;
  g.student_lost[lane] = !s_finite || !is_finite(student) || !is_finite(hard);
  g.teacher_lost[lane] = !t_finite || !is_finite(teacher);
  g.column[lane] = label_of(plan, row);
  g.label_logit[lane] = g.column[lane] < 0 ? 0
                                           : element(plan.arguments.student.dtype,
                                                     row_of(plan.arguments.student, row), g.column[lane]);
}

// ---- The gradient of one segment

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
void write_segment(const KdPlan& plan, const Weights& w, const Scratch& scratch, const KdCoefficients& c,
                   G* g, int64_t n, int64_t label) {
  int64_t i = 0;
  bool past_cache = false;
  if (plan.stream && sizeof(G) == 4 && n >= 64) {
    const int64_t head = static_cast<int64_t>((-reinterpret_cast<uintptr_t>(g) & 63) / sizeof(G));
    if (reinterpret_cast<uintptr_t>(g) % sizeof(G) == 0) {
      store_n(g, gradient_of<power, teacher, scaled>(w, scratch, 0), head);
      i = head;
      past_cache = true;
    }
  }
  if (past_cache) {
    for (; i + 16 <= n; i += 16) put(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), true);
  } else {
    for (; i + 16 <= n; i += 16) put(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), false);
  }
  if (i < n) store_n(g + i, gradient_of<power, teacher, scaled>(w, scratch, i), n - i);
  if (label >= 0 && label < n) {
    store_n(g + label, gradient_of<power, teacher, scaled>(w, scratch, label) - set1(c.label), 1);
  }
  if (past_cache) fence();
}

template <class G>
void fill(G* g, int64_t n, float value) {
  const f32x16 v = set1(value);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(g + i, v);
  store_n(g + i, v, n - i);
}

template <class G>
void write_segment(const KdPlan& plan, const Scratch& scratch, const KdSegmentSums& sums,
                   const KdCoefficients& c, G* g, int64_t n, int64_t label) {
  const bool scaled = sums.student_exponent != 0 || sums.teacher_exponent != 0 || sums.hard_exponent != 0;
  const Weights w{set1(c.student),
                  set1(c.teacher),
                  set1(c.hard),
                  set1(c.bound),
                  set1(static_cast<float>(power_of_two(sums.student_exponent))),
                  set1(static_cast<float>(power_of_two(sums.teacher_exponent))),
                  set1(static_cast<float>(power_of_two(sums.hard_exponent)))};
#define ESP_WRITE(power, teacher)                                                 \
  (scaled ? write_segment<power, teacher, true>(plan, w, scratch, c, g, n, label) \
          : write_segment<power, teacher, false>(plan, w, scratch, c, g, n, label))
  if (!plan.teacher_used) return ESP_WRITE(1, false);
  if (plan.power == 1) return ESP_WRITE(1, true);
  if (plan.power == 2) return ESP_WRITE(2, true);
  if (plan.power == 4) return ESP_WRITE(4, true);
  return ESP_WRITE(0, true);
#undef ESP_WRITE
}

// The gradient's elements from (row, column) on, as its type.
template <class Use>
ESP_INLINE void with_gradient(const KdPlan& plan, int64_t row, int64_t column, Use use) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  const int64_t at = row * a.gradient_stride + column;
  switch (a.gradient_dtype) {
    case ESP_BF16:
      return use(static_cast<bf16*>(a.gradient) + at);
    case ESP_F16:
      return use(static_cast<f16*>(a.gradient) + at);
    default:
      return use(static_cast<float*>(a.gradient) + at);
  }
}

void fill_row(const KdPlan& plan, int64_t row, float value) {
  if (plan.arguments.gradient == nullptr) return;
  with_gradient(plan, row, 0, [&](auto* g) { fill(g, plan.arguments.classes, value); });
}

void differentiate(const KdPlan& plan, int64_t row, int64_t segment, const float* memory,
                   const KdSegmentSums* sums, const KdCoefficients& c) {
  if (plan.arguments.gradient == nullptr) return;
  const int64_t first = segment * kd_segment;
  const int64_t n = plan.arguments.classes - first < kd_segment ? plan.arguments.classes - first : kd_segment;
  Scratch scratch = scratch_of(plan, const_cast<float*>(memory));
  scratch.student += first;
  if (scratch.teacher != nullptr) scratch.teacher += first;
  if (scratch.hard != nullptr) scratch.hard += first;
  if (scratch.excess != nullptr) scratch.excess += first;
  const int64_t label = c.column < 0 ? -1 : c.column - first;
  with_gradient(plan, row, first, [&](auto* g) {
    if (c.lost) {
      fill(g, n, __builtin_nanf(""));
    } else {
      write_segment(plan, scratch, sums[segment], c, g, n, label);
    }
  });
}

// ---- Rows of at most `narrow` columns: lanes are rows

template <class T>
ESP_INLINE void load_tile(const esp_logits& logits, int64_t first, uint16_t rows, int64_t column,
                          int64_t columns, f32x16 (&tile)[16]) {
  const T* p = static_cast<const T*>(logits.data) + first * logits.stride + column;
  for (int r = 0; r < 16; r++) {
    tile[r] = (rows >> r & 1) == 0 ? set1(0.0f)
              : columns == 16      ? load(p + r * logits.stride)
                                   : load_n(p + r * logits.stride, columns);
  }
  transpose(tile);
}

// Columns of logits as vectors over 16 rows; rows that are not wanted read as 0.
void load_columns(const esp_logits& logits, int64_t first, uint16_t rows, int64_t classes, float* columns) {
  for (int64_t c = 0; c < classes; c += 16) {
    const int64_t n = classes - c < 16 ? classes - c : 16;
    f32x16 tile[16];
    switch (logits.dtype) {
      case ESP_BF16:
        load_tile<bf16>(logits, first, rows, c, n, tile);
        break;
      case ESP_F16:
        load_tile<f16>(logits, first, rows, c, n, tile);
        break;
      default:
        load_tile<float>(logits, first, rows, c, n, tile);
    }
    for (int64_t i = 0; i < n; i++) store(columns + (c + i) * 16, tile[i]);
  }
}

ESP_INLINE f32x16 rounded_exponent(const KdExponential& e, f32x16 maximum) {
  return rint(max(maximum, set1(e.lowest)) * set1(e.high));
}

template <int power, bool teacher>
ESP_INLINE void sum_columns(const Constants& c, const float* s, const float* t, int64_t classes,
                            const Scratch& scratch, Sums& total) {
  // Four short chains in place of a long one, for accuracy and for speed.
  Sums sums[4];
  for (Sums& part : sums) part = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
  for (int64_t i = 0; i < classes; i += 4) {
    for (int64_t k = 0; k < 4; k++) {
      if (i + k >= classes) break;
      const int64_t at = (i + k) * 16;
      exponentials<power, teacher, true>(c, load(s + at), teacher ? load(t + at) : set1(0.0f),
                                         lanes_below(16), scratch, at, sums[k]);
    }
  }
  total.student = (sums[0].student + sums[1].student) + (sums[2].student + sums[3].student);
  total.teacher = (sums[0].teacher + sums[1].teacher) + (sums[2].teacher + sums[3].teacher);
  total.hard = power == 1 ? total.student : (sums[0].hard + sums[1].hard) + (sums[2].hard + sums[3].hard);
  total.difference = (sums[0].difference + sums[1].difference) + (sums[2].difference + sums[3].difference);
}

template <int power, bool teacher>
ESP_INLINE void write_columns(const KdPlan& plan, const Weights& w, const Scratch& scratch, f32x16 label,
                              f32x16 label_column, int64_t first, uint16_t rows) {
  const int64_t classes = plan.arguments.classes;
  for (int64_t c = 0; c < classes; c += 16) {
    const int64_t n = classes - c < 16 ? classes - c : 16;
    f32x16 tile[16];
    for (int64_t i = 0; i < 16; i++) {
      const int64_t column = c + (i < n ? i : 0);
      const mask16 here = label_column == set1(static_cast<float>(column));
      tile[i] = gradient_of<power, teacher, false>(w, scratch, column * 16) - keep(here, label);
    }
    transpose(tile);
    for (int64_t r = 0; r < 16; r++) {
      if ((rows >> r & 1) == 0) continue;
      with_gradient(plan, first + r, c, [&](auto* g) {
        if (n == 16) {
          store(g, tile[r]);
        } else {
          store_n(g, tile[r], n);
        }
      });
    }
  }
}

void wide_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory);

void narrow_group(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  const esp_kd_softmax_loss_arguments& a = plan.arguments;
  alignas(64) float s[narrow * 16], t[narrow * 16], x[narrow * 16], w[narrow * 16], h[narrow * 16],
      d[narrow * 16];
  const Scratch scratch{x, plan.teacher_used ? w : nullptr, plan.power == 0 ? h : nullptr,
                        a.bound.data != nullptr ? d : nullptr};
  uint16_t rows = 0;
  for (int64_t r = 0; r < count; r++) {
    if (looked_at(plan, first + r)) {
      rows = static_cast<uint16_t>(rows | 1u << r);
    } else {
      fill_row(plan, first + r, 0);
    }
  }
  load_columns(a.student, first, rows, a.classes, s);
  if (plan.teacher_used) load_columns(a.teacher, first, rows, a.classes, t);

  f32x16 s_max = set1(-infinity), t_max = set1(-infinity), s_min = set1(infinity);
  for (int64_t c = 0; c < a.classes; c++) {
    const f32x16 v = load(s + c * 16);
    s_max = max(v, s_max);
    s_min = min(v, s_min);
    if (plan.teacher_used) t_max = max(load(t + c * 16), t_max);
  }
  // Far logits take the way of wide rows.
  const float scale = plan.hard.high > plan.soft.high ? plan.hard.high : plan.soft.high;
  const f32x16 limit = set1(static_cast<float>(far_exponent)), largest = set1(3.40282347e+38f);
  mask16 near = abs(s_max) * set1(scale) < limit;
  mask16 finite_s = abs(s_max) <= largest, finite_t = lanes_below(16);
  if (plan.teacher_used) {
    near = near & (abs(t_max) * set1(scale) < limit) & (set1(plan.soft.lowest) <= s_min);
    finite_t = abs(t_max) <= largest;
  }
  const uint16_t far_rows = static_cast<uint16_t>(rows & bits_of(finite_s & finite_t & ~near));
  rows = static_cast<uint16_t>(rows & ~far_rows);

  const f32x16 s_exponent = rounded_exponent(plan.soft, s_max),
               t_exponent = rounded_exponent(plan.soft, t_max);
  const f32x16 h_exponent = rounded_exponent(plan.hard, s_max);
  Constants c = constants_of(plan);
  const f32x16 origin = set1(power_origin), bias = set1(static_cast<float>(plan.soft.bias));
  c.student_origin = origin + (bias - s_exponent);
  c.teacher_origin = origin + (bias - t_exponent);
  c.hard_origin = origin + (set1(static_cast<float>(plan.hard.bias)) - h_exponent);
  Sums sums;
  if (!plan.teacher_used) {
    sum_columns<1, false>(c, s, t, a.classes, scratch, sums);
  } else if (plan.power == 1) {
    sum_columns<1, true>(c, s, t, a.classes, scratch, sums);
  } else if (plan.power == 2) {
    sum_columns<2, true>(c, s, t, a.classes, scratch, sums);
  } else if (plan.power == 4) {
    sum_columns<4, true>(c, s, t, a.classes, scratch, sums);
  } else {
    sum_columns<0, true>(c, s, t, a.classes, scratch, sums);
  }
  WideSum bound{zero_f64(), zero_f64()};
  if (a.bound.data != nullptr) {
    load_columns(a.bound, first, rows, a.classes, d);
    for (int64_t i = 0; i < a.classes; i++) {
      const f32x16 v = excess_of(load(s + i * 16), load(d + i * 16));
      store(d + i * 16, v);
      add_square(bound, v);
    }
  }

  GroupSums g;
  clear(g);
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
  const mask16 sane = sums.student <= largest, sane_h = sums.hard <= largest,
               sane_t = sums.teacher <= largest;
  const uint16_t s_lost = bits_of(~(finite_s & sane & sane_h));
  const uint16_t t_lost = plan.teacher_used ? bits_of(~(finite_t & sane_t)) : uint16_t{0};
  float label_columns[16], labels[16];
  for (int r = 0; r < 16; r++) {
    label_columns[r] = -1;
    labels[r] = 0;
    if ((rows >> r & 1) == 0) continue;
    g.row[r] = first + r;
    g.student_lost[r] = (s_lost >> r & 1) != 0;
    g.teacher_lost[r] = (t_lost >> r & 1) != 0;
    g.column[r] = label_of(plan, first + r);
    if (g.column[r] >= 0) {
      g.label_logit[r] = s[g.column[r] * 16 + r];
      label_columns[r] = static_cast<float>(g.column[r]);
      labels[r] = static_cast<float>(plan.alpha);
    }
  }
  KdCoefficients coefficients[kd_group];
  finish_group(plan, g, coefficients);

  if (a.gradient != nullptr) {
    float lanes[4][16] = {};
    uint16_t lost = 0;
    for (int r = 0; r < 16; r++) {
      if ((rows >> r & 1) == 0) continue;
      lanes[0][r] = coefficients[r].student;
      lanes[1][r] = coefficients[r].teacher;
      lanes[2][r] = coefficients[r].hard;
      lanes[3][r] = coefficients[r].bound;
      if (coefficients[r].lost) lost = static_cast<uint16_t>(lost | 1u << r);
    }
    const f32x16 one = set1(1.0f);
    const Weights weights{load(lanes[0]), load(lanes[1]), load(lanes[2]), load(lanes[3]), one, one, one};
    const uint16_t written = static_cast<uint16_t>(rows & ~lost);
    const f32x16 label = load(labels), column = load(label_columns);
    if (!plan.teacher_used) {
      write_columns<1, false>(plan, weights, scratch, label, column, first, written);
    } else if (plan.power == 1) {
      write_columns<1, true>(plan, weights, scratch, label, column, first, written);
    } else if (plan.power == 2) {
      write_columns<2, true>(plan, weights, scratch, label, column, first, written);
    } else if (plan.power == 4) {
      write_columns<4, true>(plan, weights, scratch, label, column, first, written);
    } else {
      write_columns<0, true>(plan, weights, scratch, label, column, first, written);
    }
    for (int r = 0; r < 16; r++) {
      if ((lost >> r & 1) != 0) fill_row(plan, first + r, __builtin_nanf(""));
    }
  }
  for (int r = 0; r < 16; r++) {
    if ((far_rows >> r & 1) != 0) wide_rows(plan, first + r, 1, memory);
  }
}

// ---- Rows

// Rows that are measured before any of them is written.
int64_t wide_group(const KdPlan& plan) {
  return plan.arguments.classes <= kd_segment ? kd_group : 1;
}

int64_t scratch_floats(const KdPlan& plan) {
  return wide_group(plan) * arrays_of(plan) * pitch_of(plan) +
         32 * ((plan.arguments.classes + kd_segment - 1) / kd_segment);
}

void wide_rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  const int64_t classes = plan.arguments.classes, segments = (classes + kd_segment - 1) / kd_segment;
  const int64_t stride = arrays_of(plan) * pitch_of(plan), group = wide_group(plan);
  const bool ahead = plan.stream;
  static_assert(sizeof(KdSegmentSums) <= 128, "two cache lines of scratch memory a segment");
  KdSegmentSums own[kd_group];
  for (int64_t start = 0; start < count; start += group) {
    const int64_t rows = count - start < group ? count - start : group;
    GroupSums g;
    KdCoefficients coefficients[kd_group];
    clear(g);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t row = first + start + r;
      if (!looked_at(plan, row)) {
        fill_row(plan, row, 0);
        continue;
      }
      // A long row keeps the sums of its segments behind its exponentials.
      KdSegmentSums* sums = segments == 1 ? own + r : reinterpret_cast<KdSegmentSums*>(memory + stride);
      const bool more = ahead && start + r + 1 < count;
      for (int64_t k = 0; k < segments; k++) {
        measure_segment(plan, row, k, {0, 0, false}, memory + r * stride, ahead && (more || k + 1 < segments),
                        sums + k);
      }
      settle(plan, row, memory + r * stride, sums, g, static_cast<int>(r));
    }
    finish_group(plan, g, coefficients);
    for (int64_t r = 0; r < rows; r++) {
      if (g.row[r] < 0) continue;
      const KdSegmentSums* sums =
          segments == 1 ? own + r : reinterpret_cast<const KdSegmentSums*>(memory + stride);
      for (int64_t k = 0; k < segments; k++) {
        differentiate(plan, g.row[r], k, memory + r * stride, sums, coefficients[r]);
      }
    }
  }
}

void rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  if (plan.arguments.classes > narrow) return wide_rows(plan, first, count, memory);
  for (int64_t r = 0; r < count; r += kd_group) {
    narrow_group(plan, first + r, count - r < kd_group ? count - r : kd_group, memory);
  }
}

void measure(const KdPlan& plan, int64_t row, int64_t segment, float* memory, KdSegmentSums* sums) {
  measure_segment(plan, row, segment, {0, 0, false}, memory, false, sums + segment);
}

KdCoefficients finish(const KdPlan& plan, int64_t row, float* memory, KdSegmentSums* sums) {
  GroupSums g;
  KdCoefficients coefficients[kd_group];
  clear(g);
  settle(plan, row, memory, sums, g, 0);
  finish_group(plan, g, coefficients);
  return coefficients[0];
}

}  // namespace

namespace esp {
extern const KdKernels ESP_VARIANT(kd_softmax_loss);
const KdKernels ESP_VARIANT(kd_softmax_loss) = {scratch_floats, rows, measure, finish, differentiate};
}  // namespace esp
