// kd_softmax_loss, up to 16 rows at once: loss terms and coefficients of the gradient from sums.
#pragma once
#include "kd_softmax_loss_lanes.h"

namespace {

constexpr uint32_t all_rows = 0xffff;

// Lane i is row first + i; those whose bit in `rows` is not set are left out.
struct GroupSums {
  int64_t first;
  uint32_t rows, student_lost, teacher_lost;
  double student[kd_group], teacher[kd_group], hard[kd_group], difference[kd_group], bound[kd_group];
  double hard_exponent[kd_group], base[kd_group];  // the maximum that was taken off, in two parts
  double label_logit[kd_group];
  int64_t column[kd_group];  // of the label, or -1
};

void clear(GroupSums& g, int64_t first) {
  g.first = first;
  g.rows = g.student_lost = g.teacher_lost = 0;
  for (int i = 0; i < kd_group; i++) {
    g.student[i] = g.teacher[i] = g.hard[i] = 1;
    g.difference[i] = g.bound[i] = g.hard_exponent[i] = g.base[i] = g.label_logit[i] = 0;
    g.column[i] = -1;
  }
}

// What the gradients of the rows need, as KdCoefficients.
struct GroupCoefficients {
  float student[kd_group], teacher[kd_group], hard[kd_group], label[kd_group];
  uint32_t lost;
};

// The rows' terms to the plan's arrays. Loops over 16 lanes without branches, so that they become vectors.
void finish_group(const KdPlan& plan, const GroupSums& g, GroupCoefficients& c) {
  double log_hard[kd_group], ratio[kd_group], log_ratio[kd_group], ce[kd_group], kl[kd_group];
  double alpha[kd_group], hard[kd_group], student[kd_group], teacher[kd_group];
  // One class: the loss is 0 to the last bit.
  const double one = plan.arguments.classes == 1 ? 0 : 1, hard_bias = plan.hard.bias,
               given_alpha = plan.alpha;
  const double temperature_squared = plan.teacher_used ? plan.temperature_squared * one : 0;
  const double soft_weight = plan.teacher_used ? plan.soft_weight : 0;
  const double shared = plan.power == 1 ? 1 : 0, apart = 1 - shared;
  for (int i = 0; i < kd_group; i++) {
    student[i] = 1 / g.student[i];
    teacher[i] = 1 / g.teacher[i];
    ratio[i] = g.student[i] * teacher[i];
  }
  log16(ratio, log_ratio);
  for (int i = 0; i < kd_group; i++) {
    const double divergence = ln2 * g.difference[i] * teacher[i] + log_ratio[i];
    kl[i] = temperature_squared * (divergence > 0 ? divergence : 0);  // less than 0 only by rounding
    ce[i] = alpha[i] = hard[i] = 0;
  }
  if (plan.labels_used) {
    log16(g.hard, log_hard);
    for (int i = 0; i < kd_group; i++) {
      const double valid = g.column[i] >= 0 ? 1 : 0;
      const double term =
          log_hard[i] + ln2 * (g.hard_exponent[i] - hard_bias) + (g.base[i] - g.label_logit[i]);
      alpha[i] = valid * given_alpha;
      hard[i] = alpha[i] / g.hard[i];
      ce[i] = valid != 0 ? term * one : 0;
    }
  }
  for (int i = 0; i < kd_group; i++) {
    c.student[i] = static_cast<float>(soft_weight * student[i] + shared * hard[i]);
    c.teacher[i] = static_cast<float>(soft_weight * teacher[i]);
    c.hard[i] = static_cast<float>(apart * hard[i]);
    c.label[i] = static_cast<float>(alpha[i]);
  }
  c.lost = g.student_lost | g.teacher_lost;
  for (uint32_t left = c.lost; left != 0; left &= left - 1) {
    const int i = __builtin_ctz(left);
    if ((g.student_lost >> i & 1) != 0 && g.column[i] >= 0) ce[i] = __builtin_nan("");
    kl[i] = plan.teacher_used ? __builtin_nan("") : 0;
  }
  if (plan.arguments.bound.data != nullptr) {
    for (int i = 0; i < kd_group; i++) {
      if (g.bound[i] != g.bound[i]) c.lost |= 1u << i;
    }
  }
  const int64_t first = g.first;
  if (g.rows == all_rows) {
    __builtin_memcpy(plan.ce + first, ce, sizeof ce);
    __builtin_memcpy(plan.kl + first, kl, sizeof kl);
    __builtin_memcpy(plan.bound + first, g.bound, sizeof g.bound);
    return;
  }
  for (uint32_t left = g.rows; left != 0; left &= left - 1) {
    const int i = __builtin_ctz(left);
    plan.ce[first + i] = ce[i];
    plan.kl[first + i] = kl[i];
    plan.bound[first + i] = g.bound[i];
  }
}

KdCoefficients coefficients_of(const KdPlan& plan, const GroupSums& g, const GroupCoefficients& c, int lane) {
  return {c.student[lane],
          c.teacher[lane],
          c.hard[lane],
          static_cast<float>(plan.bound_weight),
          c.label[lane],
          g.column[lane],
          (c.lost >> lane & 1) != 0};
}

}  // namespace
