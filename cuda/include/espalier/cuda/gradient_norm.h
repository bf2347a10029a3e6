/*
 * gradient_norm on a device: espalier/gradient_norm.h, with the same bits in the result. Conventions: plan.h.
 */
#ifndef ESPALIER_CUDA_GRADIENT_NORM_H
#define ESPALIER_CUDA_GRADIENT_NORM_H

#include "espalier/cuda/plan.h"
#include "espalier/gradient_norm.h"

#ifdef __cplusplus
extern "C" {
#endif

ESP_API esp_status esp_cuda_gradient_norm_plan(const esp_gradient* gradients, int64_t count,
                                               esp_cuda_plan* plan, void* table);

/* result: device memory, aligned to 8. */
ESP_API esp_status esp_cuda_gradient_norm(const esp_cuda_plan* plan, const void* table, void* workspace,
                                          esp_gradient_norm_result* result, void* stream);

#ifdef __cplusplus
}
#endif
#endif
