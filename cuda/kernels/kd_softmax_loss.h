// What kd_softmax_loss's plan and kernels share. Segments, sums and coefficients are the CPU's.
#pragma once
#include <cstdint>

#include "device_limits.h"
#include "espalier/cuda/kd_softmax_loss.h"
#include "kd_softmax_loss_arguments.h"

namespace esp {

constexpr int kd_threads = 256;
constexpr int64_t kd_narrow = 64;  // rows of at most as many classes are a quarter of 4 threads each
constexpr int kd_narrow_rows = kd_threads / 4;        // a block
constexpr int64_t kd_checked_rows = 16 * kd_threads;  // rows whose labels a block looks at
constexpr int kd_far_blocks = 64;                     // that look after the far rows of those that are held
constexpr int kd_pack = 8;                            // elements of 16 bits that a thread loads at once
constexpr int kd_most_blocks = 8;                     // of a cluster

// The head of the workspace.
struct KdState {
  unsigned long long rows, valid, bad;  // counted; bad: INT64_MAX - row, 0: none
  uint32_t arrived, far_rows;
  // What the first kernel found for the others.
  int32_t labels_used, is_bad;
  double alpha, soft_weight, bound_weight;
  esp_cuda_kd_softmax_loss_result result;  // without its sums
};

// How rows of 16-bit logits are held in shared memory between their two passes: blocks side by side have
// `share` columns each, in layers of a pack a thread. Layers from `held` on are read again.
struct KdHold {
  int32_t blocks;  // of a row, a cluster; 0: rows are not held
  int32_t layers, held;
  int64_t share;         // columns, a multiple of kd_pack
  int64_t shared_bytes;  // of a block
  int64_t most_bytes;    // the same at most, whatever the rows
};
KdHold kd_hold(const esp_kd_softmax_loss_arguments& arguments, const DeviceLimits& limits);

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
  KdHold hold;
  KdState* state;
  double* terms;        // [3][rows]: ce, kl, bound
  uint32_t* arrived;    // [rows]: segments that are measured
  int64_t* far;         // [rows]: those of narrow or held rows that take the way of wide ones
  KdRow* row;           // [rows]
  KdSegmentSums* sums;  // [rows][segments]
  esp_cuda_kd_softmax_loss_result* result;
};

esp_status launch_kd_softmax_loss(const KdCall& call, const DeviceLimits& limits, void* stream);

}  // namespace esp
