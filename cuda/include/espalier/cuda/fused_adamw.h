/*
 * fused_adamw on a device: espalier/fused_adamw.h, with the same bits in every weight, moment, scale, gate
 * and working copy (a NaN is a NaN on both, its bits may differ). Conventions: plan.h. Clip factor, skipping
 * and the corrections of each tensor's age are found on the device, and nothing waits for them. What is
 * different:
 *
 * - `step` of a tensor is not read: `steps` takes its place, because only the device knows whether a step was
 * skipped.
 * - Where the CPU returns ESP_NON_FINITE, the step changes nothing and its result has skipped =
 * ESP_STEP_REFUSED.
 * - The values of given scales are not checked.
 * - A step with noise cannot be captured in a graph (ESP_UNSUPPORTED): each launch would add the same noise.
 */
#ifndef ESPALIER_CUDA_FUSED_ADAMW_H
#define ESPALIER_CUDA_FUSED_ADAMW_H

#include "espalier/cuda/plan.h"
#include "espalier/fused_adamw.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `options` say whether a norm is needed; other values may change from call to call. */
ESP_API esp_status esp_cuda_fused_adamw_plan(const esp_adamw_tensor* tensors, int64_t count,
                                             const esp_adamw_options* options, esp_cuda_plan* plan,
                                             void* table);

/*
 * One step. Device memory: `steps`, an int64_t a tensor, steps done: 0 says that the moments hold nothing
 * yet; a step that is done adds 1. `result`, aligned to 8.
 */
ESP_API esp_status esp_cuda_fused_adamw(const esp_cuda_plan* plan, const void* table, void* workspace,
                                        const esp_adamw_options* options, int64_t* steps,
                                        esp_step_result* result, void* stream);

#ifdef __cplusplus
}
#endif
#endif
