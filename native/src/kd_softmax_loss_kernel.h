#pragma once
#include "cpu_features.h"
#include "espalier/kd_softmax_loss.h"

namespace esp {

// Columns of a segment: what a row is cut into. Its logits and exponentials fit the L1 cache.
constexpr int64_t kd_segment = 2048;
// Rows of a group: the lanes in which logarithms and coefficients are computed.
constexpr int64_t kd_group = 16;

// One exponential: 2^(x * scale - M + bias), M an integer near the largest x * scale.
struct KdExponential {
  float high, low;  // scale = log2(e) / T
  float lowest;     // smaller logits count as this one: still without doubt 0
  double scale;
  double bias;  // keeps probabilities down to 2^-145 from underflow
};

struct KdPlan {
  esp_kd_softmax_loss_arguments arguments;  // bound absent unless it is to be computed
  bool labels_used, teacher_used;
  // How the exponentials at temperature 1 and T relate: 1: only one is needed; 2, 4: T-th power; 0: computed
  // apart.
  int power;
  KdExponential soft;  // at T; at 1 where there is no teacher
  KdExponential hard;  // at 1
  double alpha, soft_weight, bound_weight,
      temperature_squared;  // alpha / N_valid, (1 - alpha) * T / N, 2 * beta / N, T^2
  bool stream;              // the gradient goes past the cache
  double *ce, *kl, *bound;  // by row: the terms of the means
};

// Sums over the columns of a segment, relative to 2^(bias - exponent).
struct KdSegmentSums {
  double student, teacher, hard;              // of exponentials
  double difference;                          // of teacher's * log2(teacher's / student's)
  double bound;                               // of max(0, s - b)^2
  double student_exponent, teacher_exponent;  // M; that of `hard` follows where it is a power
  double hard_exponent;
  float student_max, teacher_max, student_min;
};

// What the gradient of a row needs.
struct KdCoefficients {
  float student, teacher, hard, bound, label;
  int64_t column;  // of the label; -1: none
  bool lost;       // no softmax: NaN
};

struct KdKernels {
  // Floats of scratch memory, 64-byte aligned, that `rows` wants.
  int64_t (*scratch)(const KdPlan& plan);
  // Rows first .. first + count - 1, complete.
  void (*rows)(const KdPlan& plan, int64_t first, int64_t count, float* scratch);
  // One row in three steps, the outer two in parallel over the segments.
  void (*measure)(const KdPlan& plan, int64_t row, int64_t segment, float* scratch, KdSegmentSums* sums);
  KdCoefficients (*finish)(const KdPlan& plan, int64_t row, float* scratch, KdSegmentSums* sums);
  void (*differentiate)(const KdPlan& plan, int64_t row, int64_t segment, float* scratch,
                        const KdSegmentSums* sums, const KdCoefficients& coefficients);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(KdKernels, kd_softmax_loss)
