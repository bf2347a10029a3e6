/*
 * magnitude_prune on a device: espalier/magnitude_prune.h, with the same weights pruned, the same masks and
 * the same results. Conventions: plan.h. How many weights remain is found on the device, and nothing waits
 * for it. What is different:
 *
 * - Where the CPU refuses a count above what remains, nothing is written and the result has pruned = -1.
 * - The list has at most 2^53 weights.
 * - A pattern whose groups do not lie whole in 16 bytes (n:2 and n:4 along the last axis do, n:8 of 16-bit
 * weights too) keeps its decisions, one bit a weight, in the workspace.
 */
#ifndef ESPALIER_CUDA_MAGNITUDE_PRUNE_H
#define ESPALIER_CUDA_MAGNITUDE_PRUNE_H

#include "espalier/cuda/plan.h"
#include "espalier/magnitude_prune.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of `rule`, kind, scope and group must stay for the plan to hold; amount, count, threshold and keep may
 * change. */
ESP_API esp_status esp_cuda_magnitude_prune_plan(const esp_prune_tensor* tensors, int64_t count,
                                                 const esp_prune_rule* rule, esp_cuda_plan* plan,
                                                 void* table);

/* Device memory, aligned to 8: `result`; `pruned`, a number a tensor or NULL. */
ESP_API esp_status esp_cuda_magnitude_prune(const esp_cuda_plan* plan, const void* table, void* workspace,
                                            const esp_prune_rule* rule, esp_prune_result* result,
                                            int64_t* pruned, void* stream);

#ifdef __cplusplus
}
#endif
#endif
