// kd_softmax_loss, rows of logits [C]: sums of exponentials, then loss terms and coefficients, then the
// gradient
//
//   g = student * 2^(s c + ..) + hard * 2^(s c1 + ..) - teacher * 2^(t c + ..) + bound * max(0, s - b) -
//   label * 1_y
//
// kd_softmax_loss_lanes.h: what 16 lanes need; _group.h: loss terms and coefficients of 16 rows; _narrow.h:
// rows of few columns, where the lanes are rows; _wide.h: the others, where the lanes are columns.
//
// Numerics: powers of two with an integer in place of the maximum; at T = 2 and 4 the exponential at
// temperature 1 is a power of the one at T. Where no exponential is near underflow, the limits that guard
// against it are left out, with the same bits. Bytes: 12 an element (F32), each logit read and each gradient
// written once. What an element costs is arithmetic: two exponentials are some 40 vector operations for 16.
#include "kd_softmax_loss_narrow.h"
#include "kd_softmax_loss_wide.h"

namespace {

void rows(const KdPlan& plan, int64_t first, int64_t count, float* memory) {
  if (plan.arguments.classes <= narrow) {
    for (int64_t r = 0; r < count; r += kd_group)
      narrow_group(plan, first + r, count - r < kd_group ? count - r : kd_group, memory);
  } else {
    wide_rows(plan, first, count, memory);
  }
  if (plan.stream) fence();
}

void measure(const KdPlan& plan, int64_t row, int64_t k, float* memory, KdSegmentSums* sums) {
  measure_segment(plan, row, k, {0, 0, false}, memory, false, nullptr, sums + k);
}

KdCoefficients finish(const KdPlan& plan, int64_t row, float* memory, KdSegmentSums* sums) {
  GroupSums g;
  GroupCoefficients coefficients;
  clear(g, row);
  settle(plan, row, memory, sums, g);
  finish_group(plan, g, coefficients);
  return coefficients_of(plan, g, coefficients, 0);
}

void differentiate(const KdPlan& plan, int64_t row, int64_t k, float* memory, const KdSegmentSums* sums,
                   const KdCoefficients& c) {
  if (plan.arguments.gradient == nullptr) return;
  if (c.lost) {
    const Segment segment = segment_of(plan, k);
    with_gradient(plan, row, segment.first, [&](auto* g) { fill(g, segment.n, __builtin_nanf("")); });
    return;
  }
  SegmentGradient g = gradient_of_segment(plan, row, k, memory, sums[k], c);
  g.write(g, g.n);
  if (plan.stream) fence();
}

}  // namespace

namespace esp {
extern const KdKernels ESP_VARIANT(kd_softmax_loss);
const KdKernels ESP_VARIANT(kd_softmax_loss) = {scratch_floats, rows, measure, finish, differentiate};
}  // namespace esp
