/*
 * fused_sgd on a device: espalier/fused_sgd.h, with the same bits in every weight, momentum, scale, gate and
 * working copy (a NaN is a NaN on both, its bits may differ). Conventions: plan.h. Clip factor and skipping
 * are found on the device, and nothing waits for them. What is different:
 *
 * - `first` of a tensor is not read: `started` takes its place, because only the device knows whether a step
 * was skipped.
 * - Where the CPU returns ESP_NON_FINITE, the step changes nothing and its result has skipped =
 * ESP_STEP_REFUSED.
 * - The values of given scales are not checked.
 * - A step with noise cannot be captured in a graph (ESP_UNSUPPORTED): each launch would add the same noise.
 */
#ifndef ESPALIER_CUDA_FUSED_SGD_H
#define ESPALIER_CUDA_FUSED_SGD_H

#include "espalier/cuda/plan.h"
#include "espalier/fused_sgd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `options` say whether a norm is needed and momentum is used; other values may change from call to call. */
ESP_API esp_status esp_cuda_fused_sgd_plan(const esp_sgd_tensor* tensors, int64_t count,
                                           const esp_sgd_options* options, esp_cuda_plan* plan, void* table);

/*
 * One step. Device memory: `started`, an int32_t a tensor, 0 where the momentum buffer holds nothing yet; a
 * step that is done with momentum sets it to 1 (NULL without momentum). `result`, aligned to 8.
 */
ESP_API esp_status esp_cuda_fused_sgd(const esp_cuda_plan* plan, const void* table, void* workspace,
                                      const esp_sgd_options* options, int32_t* started,
                                      esp_step_result* result, void* stream);

#ifdef __cplusplus
}
#endif
#endif
