// fused_adamw: the update of an element; formulas in espalier/fused_adamw.h, everything around it in
// fused_step.cuh.
//
// Numerics: F32 in the CPU's order, root and division correctly rounded; what a tensor's age corrects is
// found in double by a small kernel before, a thread a tensor. Bytes a weight: 16 read (14 with 16-bit
// gradients), 12 written, 1/8 a bit field, and the working copy; 4 more read where channels are spread.
#include "fused_adamw.h"

#include "fused_adamw_arguments.h"
#include "fused_step.cuh"

namespace {

struct AdamwAge {
  esp::AdamwCorrection correction;
  bool first;
};

// +0 in the place of denormals; a NaN stays.
__device__ __forceinline__ float keep_normal(float moment) {
  return fabsf(moment) < 0x1p-126f ? 0.0f : moment;
}

struct AdamwRule {
  using Coefficients = esp::AdamwCoefficients;
  using History = int64_t;
  using Correction = esp::AdamwCorrection;
  using Age = AdamwAge;
  static constexpr int states = 2, group = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  static constexpr int blocks = 2;  // three would spill there, and a quarter of the bytes keeps its memory busy
#else
  static constexpr int blocks = 3;
#endif
  static constexpr bool corrects = true;

  static __device__ __forceinline__ History older(History steps) { return steps + 1; }
  static __device__ __forceinline__ Age age(const Coefficients&, const History* steps,
                                            const Correction* corrections, int32_t tensor) {
    return {corrections[tensor], steps[tensor] == 0};
  }
  static __device__ __forceinline__ bool reads(const Age& age) { return !age.first; }
  static __device__ __forceinline__ bool writes(const Age&) { return true; }
  template <class Descent>
  static __device__ __forceinline__ void move(const Coefficients& c, const Age& age, uint32_t keep,
                                              const Descent& descent, Pack<float, 4>& w,
                                              Pack<float, 4> (&moment)[2]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float g = descent(j);
      const float m = fmaf(g, c.rest1, age.first ? 0.0f : moment[0].at[j] * c.beta1);
      const float v = fmaf(g * c.rest2, g, age.first ? 0.0f : moment[1].at[j] * c.beta2);
      const float ratio = m / fmaf(sqrtf(v), age.correction.root, c.epsilon);
      moment[0].at[j] = kept(keep, j, keep_normal(m));
      moment[1].at[j] = kept(keep, j, keep_normal(v));
      w.at[j] = kept(keep, j, fmaf(ratio, age.correction.minus_rate, w.at[j] * c.decay));
    }
  }
};

constexpr int correct_threads = 256;

__global__ void __launch_bounds__(correct_threads)
    fused_adamw_correct_kernel(const int64_t* steps, esp::AdamwCorrection* corrections, int64_t count,
                               double learning_rate, double beta1, double beta2) {
  esp::let_next_begin();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * correct_threads + threadIdx.x;
  esp::AdamwCorrection correction = {};
  if (i < count) correction = esp::adamw_correction(learning_rate, beta1, beta2, steps[i] + 1);
  esp::wait_for_kernel_before();
  if (i < count) corrections[i] = correction;
}

}  // namespace

esp_status esp_cuda_fused_adamw(const esp_cuda_plan* plan, const void* table, void* workspace,
                                const esp_adamw_options* options, int64_t* steps, esp_step_result* result,
                                void* stream) {
  if (plan == nullptr || workspace == nullptr || options == nullptr || result == nullptr ||
      (steps == nullptr && plan->operation[esp::step_tensors] > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_adamw: plan, workspace, options, steps or result is NULL");
  }
  if (esp_status status = esp::check_adamw_options(*options)) return status;
  const bool guarded = options->max_norm > 0 || options->skip_non_finite != 0;
  if (esp_status status = check_plan("fused_adamw", *plan, guarded, true)) return status;
  if (esp_status status = check_capture("fused_adamw", options->noise, stream)) return status;
  return launch_step<AdamwRule>(
      {"fused_adamw: update", "fused_adamw: quantize", plan, table, workspace, options->max_norm,
       options->skip_non_finite, result, stream},
      esp::adamw_coefficients(*options, 1, {}), steps,
      [&](esp::Kernels& kernels, esp::AdamwCorrection* corrections, int64_t count) {
        return count == 0 ? ESP_OK
                          : kernels.launch("fused_adamw: correct", fused_adamw_correct_kernel,
                                           (count + correct_threads - 1) / correct_threads, correct_threads,
                                           steps, corrections, count, options->learning_rate, options->beta1,
                                           options->beta2);
      });
}
