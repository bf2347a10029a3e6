// What kd_softmax_loss's plan and kernels share. Segments, sums and coefficients are the CPU's.
#pragma once
#include <cstdint>

#include "espalier/cuda/kd_softmax_loss.h"
#include "kd_softmax_loss_arguments.h"

namespace esp {

constexpr int kd_threads = 256;
constexpr int64_t kd_narrow = 64;  // rows of at most as many classes are a quarter of 4 threads each
constexpr int kd_narrow_rows = kd_threads / 4;        // a block
constexpr int64_t kd_checked_rows = 16 * kd_threads;  // rows whose labels a block looks at

// The head of the workspace.
struct KdState {
  unsigned long long rows, valid, bad;  // counted; bad: INT64_MAX - row, 0: none
  uint32_t arrived, far_rows;
  // What the first kernel found for the others.
  int32_t labels_used, is_bad;
  double alpha, soft_weight, bound_weight;
  esp_cuda_kd_softmax_loss_result result;  // without its sums
};

// What the gradient of a row needs.
struct KdRow {
  double student_exponent, teacher_exponent, hard_exponent;
  float student_base, teacher_base;
  KdCoefficients coefficients;
};

struct KdCall {
  esp_kd_softmax_loss_arguments arguments;  // bound absent unless it is to be computed
  KdPowers with_labels, without_labels;
  double temperature_squared;
  int64_t segments;  // of a row
  KdState* state;
  double* terms;        // [3][rows]: ce, kl, bound
  uint32_t* arrived;    // [rows]: segments that are measured
  int64_t* far;         // [rows]: those of narrow rows that take the way of wide ones
  KdRow* row;           // [rows]
  KdSegmentSums* sums;  // [rows][segments]
  esp_cuda_kd_softmax_loss_result* result;
};

esp_status launch_kd_softmax_loss(const KdCall& call, void* stream);

}  // namespace esp
