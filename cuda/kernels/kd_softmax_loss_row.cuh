// What the kernels of kd_softmax_loss share: logits, exponentials as the CPU has them, terms and coefficients
// of a row.
#pragma once
#include "kd_softmax_loss.h"

#include "kernel.cuh"
#include "logarithm.h"

namespace {

using esp::bf16;
using esp::f16;
using esp::kd_segment;
using esp::KdCall;
using esp::KdCoefficients;
using esp::KdExponential;
using esp::KdPowers;
using esp::KdRow;
using esp::KdSegmentSums;
using esp::KdState;

constexpr int threads = esp::kd_threads;
constexpr float infinity = __builtin_huge_valf(), largest = 3.40282347e+38f;
constexpr double ln2 = 0x1.62e42fefa39efp-1;
constexpr float power_zero = 0x1.8p23f, power_origin = power_zero + 127;
constexpr double far_exponent = 0x1p19;

__device__ __forceinline__ float most(float a, float b) {
  return a > b ? a : b;
}
__device__ __forceinline__ float least(float a, float b) {
  return a < b ? a : b;
}
__device__ __forceinline__ bool is_finite(double x) {
  return fabs(x) <= 0x1.fffffffffffffp1023;
}
__device__ __forceinline__ float quiet_nan() {
  return __uint_as_float(0x7fc00000);
}

// ---- logits

__device__ __forceinline__ const char* row_of(const esp_logits& logits, int64_t row) {
  return static_cast<const char*>(logits.data) + row * logits.stride * (logits.dtype == ESP_F32 ? 4 : 2);
}
__device__ __forceinline__ float element(const esp_logits& logits, int64_t row, int64_t column) {
  const char* const p = row_of(logits, row);
  return logits.dtype == ESP_BF16  ? esp::to_float(reinterpret_cast<const bf16*>(p)[column])
         : logits.dtype == ESP_F16 ? esp::to_float(reinterpret_cast<const f16*>(p)[column])
                                   : reinterpret_cast<const float*>(p)[column];
}
__device__ __forceinline__ bool kept(const KdCall& call, int64_t row) {
  const uint8_t* const mask = call.arguments.row_mask;
  return mask == nullptr || (mask[row >> 3] >> (row & 7) & 1) != 0;
}
__device__ __forceinline__ int64_t label_of(const KdCall& call, int64_t row) {
  if (call.arguments.labels == nullptr || call.state->labels_used == 0) return -1;
  const int64_t label = call.arguments.labels[row];
  return label == call.arguments.ignore_index ? -1 : label;
}
__device__ __forceinline__ bool looked_at(const KdCall& call, int64_t row) {
  return kept(call, row) && (call.arguments.teacher.data != nullptr || call.arguments.bound.data != nullptr ||
                             label_of(call, row) >= 0);
}
__device__ __forceinline__ const KdPowers& powers_of(const KdCall& call) {
  return call.state->labels_used != 0 ? call.with_labels : call.without_labels;
}

// ---- exponentials, as native/src/simd/math.h has them

struct Power {
  float value, exponent, fraction;
};
__device__ __forceinline__ Power exp2_scaled(float x, const KdExponential& e, float origin) {
  Power power;
  x = most(e.lowest, x);  // the limit first, so that a NaN passes
  power.exponent = fmaf(x, e.high, origin);
  float r = fmaf(x, e.high, origin - power.exponent);
  r = fmaf(x, e.low, r);
  power.fraction = r;
  float p = 0x1.4172b4p-13f;
  p = fmaf(p, r, 0x1.5f0976p-10f);
  p = fmaf(p, r, 0x1.3b2ddap-7f);
  p = fmaf(p, r, 0x1.c6af7ap-5f);
  p = fmaf(p, r, 0x1.ebfbdcp-3f);
  p = fmaf(p, r, 0x1.62e43p-1f);
  p = fmaf(p, r, 1.0f);
  power.value = p * __uint_as_float(__float_as_uint(most(power.exponent, power_zero)) << 23);
  return power;
}
__device__ __forceinline__ float exponent_of(const KdExponential& e, float maximum) {
  return rintf(most(maximum, e.lowest) * e.high);
}
__device__ __forceinline__ float origin_of(const KdExponential& e, float exponent) {
  return power_origin + (static_cast<float>(e.bias) - exponent);
}
__device__ __forceinline__ float hard_power(int power, float student) {
  const float square = student * student;
  return power == 2 ? square : square * square;
}
// max(0, s - b); a bound of -inf bounds nothing.
__device__ __forceinline__ float excess_of(float s, float b) {
  return b == -infinity ? 0.0f : most(0.0f, s - b);
}

__device__ double log_of(double x) {
  return esp::logarithm(x);
}
__device__ __forceinline__ double power_of_two(double n) {
  if (!(n >= -1022)) return 0;
  return __longlong_as_double((static_cast<long long>(n) + 1023) << 52);
}

// ---- loss terms and coefficients of one row

struct RowSums {
  double student, teacher, hard, difference, bound, hard_exponent, base;
  float label_logit;
  bool student_lost, teacher_lost;
  int64_t column;
};

// The row's terms of ce, kl and bound.
__device__ __forceinline__ void record_terms(const KdCall& call, int64_t row, const RowSums& g) {
  const KdPowers& powers = powers_of(call);
  const bool valid = g.column >= 0, soft = call.arguments.teacher.data != nullptr,
             one = call.arguments.classes == 1;
  const double nan = __longlong_as_double(0x7ff8000000000000ll);
  const double teacher = 1 / g.teacher;
  double* const terms = call.terms + row;
  const int64_t rows = call.arguments.rows;
  const double divergence = ln2 * g.difference * teacher + log_of(g.student * teacher);
  const double ce = log_of(g.hard) + ln2 * (g.hard_exponent - powers.hard.bias) +
                    (g.base - static_cast<double>(g.label_logit));
  terms[0] = !valid ? 0 : g.student_lost ? nan : one ? 0 : ce;
  terms[rows] = !soft                              ? 0
                : g.student_lost || g.teacher_lost ? nan
                : one || !(divergence > 0)         ? 0
                                                   : call.temperature_squared * divergence;
  terms[2 * rows] = g.bound != g.bound ? nan : g.bound;
}
__device__ __forceinline__ KdCoefficients coefficients_of(const KdCall& call, const RowSums& g) {
  const KdState& state = *call.state;
  const int power = powers_of(call).power;
  const bool valid = g.column >= 0, soft = call.arguments.teacher.data != nullptr;
  const double student = 1 / g.student, teacher = 1 / g.teacher, hard = valid ? state.alpha / g.hard : 0;
  const double soft_weight = soft ? state.soft_weight : 0;
  KdCoefficients c;
  c.lost = g.student_lost || g.teacher_lost || g.bound != g.bound;
  c.student = static_cast<float>(soft_weight * student + (power == 1 ? hard : 0));
  c.teacher = static_cast<float>(soft_weight * teacher);
  c.hard = static_cast<float>(power == 1 ? 0 : hard);
  c.bound = static_cast<float>(state.bound_weight);
  c.label = static_cast<float>(valid ? state.alpha : 0);
  c.column = g.column;
  return c;
}
__device__ __forceinline__ void clear_terms(const KdCall& call, int64_t row) {
  for (int part = 0; part < 3; part++) call.terms[part * call.arguments.rows + row] = 0;
}

__device__ __forceinline__ float gradient_of(const KdCoefficients& c, int power, bool soft, bool bounded,
                                             float x, float t, float h, float excess) {
  float g = c.student * x;
  if (soft) g = fmaf(-c.teacher, t, g);
  if (power == 0) {
    g = fmaf(c.hard, h, g);
  } else if (power != 1) {
    g = fmaf(c.hard, hard_power(power, x), g);
  }
  if (bounded) g = fmaf(c.bound, excess, g);
  return g;
}

}  // namespace
