// fused_sgd: the update of an element; formulas in espalier/fused_sgd.h, everything around it in
// fused_step.cuh.
//
// Numerics: F32, one fma a term, in the CPU's order. Bytes a weight: 12 read (10 with 16-bit gradients), 8
// written, 1/8 a bit field, and the working copy; 4 more read where channels are spread.
#include "fused_sgd.h"

#include "fused_sgd_arguments.h"
#include "fused_step.cuh"

namespace {

enum class Momentum { none, first, running };

struct SgdRule {
  using Coefficients = esp::SgdCoefficients;
  using History = int32_t;
  using Correction = char;
  using Age = Momentum;
  static constexpr int states = 1, blocks = 3, group = 2;
  static constexpr bool corrects = false;

  static __device__ __forceinline__ History older(History) { return 1; }
  static __device__ __forceinline__ Age age(const Coefficients& c, const History* started, const Correction*,
                                            int32_t tensor) {
    return c.momentum == 0 ? Momentum::none : started[tensor] == 0 ? Momentum::first : Momentum::running;
  }
  static __device__ __forceinline__ bool reads(Age kind) { return kind == Momentum::running; }
  static __device__ __forceinline__ bool writes(Age kind) { return kind != Momentum::none; }
  // What is the same for all elements is asked once a pack.
  template <class Descent>
  static __device__ __forceinline__ void move(const Coefficients& c, Age kind, uint32_t keep,
                                              const Descent& descent, Pack<float, 4>& w,
                                              Pack<float, 4> (&momentum)[1]) {
    Pack<float, 4>& b = momentum[0];
    float d[4];
#pragma unroll
    for (int j = 0; j < 4; j++) d[j] = descent(j);
    if (c.weight_decay != 0) {
#pragma unroll
      for (int j = 0; j < 4; j++) d[j] = fmaf(w.at[j], c.weight_decay, d[j]);
    }
    if (kind != Momentum::none) {
      if (kind == Momentum::running) {
#pragma unroll
        for (int j = 0; j < 4; j++) b.at[j] = fmaf(d[j], c.damped, b.at[j] * c.momentum);
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++) b.at[j] = d[j];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) d[j] = c.nesterov ? fmaf(b.at[j], c.momentum, d[j]) : b.at[j];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      b.at[j] = kept(keep, j, b.at[j]);
      w.at[j] = kept(keep, j, fmaf(d[j], c.minus_rate, w.at[j]));
    }
  }
};

}  // namespace

esp_status esp_cuda_fused_sgd(const esp_cuda_plan* plan, const void* table, void* workspace,
                              const esp_sgd_options* options, int32_t* started, esp_step_result* result,
                              void* stream) {
  if (plan == nullptr || workspace == nullptr || options == nullptr || result == nullptr ||
      (started == nullptr && plan->operation[esp::step_tensors] > 0 && options->momentum > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: plan, workspace, options, started or result is NULL");
  }
  if (esp_status status = esp::check_sgd_options(*options)) return status;
  const bool guarded = options->max_norm > 0 || options->skip_non_finite != 0;
  if (esp_status status = check_plan("fused_sgd", *plan, guarded, options->momentum > 0)) return status;
  if (esp_status status = check_capture("fused_sgd", options->noise, stream)) return status;
  return launch_step<SgdRule>({"fused_sgd: update", "fused_sgd: quantize", plan, table, workspace,
                               options->max_norm, options->skip_non_finite, result, stream},
                              esp::sgd_coefficients(*options, 1.0f), started,
                              [](esp::Kernels&, SgdRule::Correction*, int64_t) -> esp_status { return ESP_OK; });
}
