/*
 * The gradients of learned scales and zero points on a device: esp_fake_quantize_scale_gradient of a list of
 * tensors, with the same bits in all outputs (a NaN is a NaN on both, its bits may differ). Conventions:
 * plan.h. What differs:
 *
 * - Scales and zero points that cannot be used are results in device memory: nothing here reads it. Outputs
 * of a tensor with such a channel are unspecified.
 */
#ifndef ESPALIER_CUDA_FAKE_QUANTIZE_SCALE_GRADIENT_H
#define ESPALIER_CUDA_FAKE_QUANTIZE_SCALE_GRADIENT_H

#include "espalier/cuda/plan.h"
#include "espalier/fake_quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_cuda_scale_gradient_result {
  int64_t bad_channel; /* the first whose scale, its reciprocal or its zero point cannot be used; -1: none */
} esp_cuda_scale_gradient_result;

/* The table holds the quantizer too. */
ESP_API esp_status esp_cuda_fake_quantize_scale_gradient_plan(const esp_quantizer* quantizer,
                                                              const esp_scale_gradient* gradients,
                                                              int64_t count, esp_cuda_plan* plan,
                                                              void* table);

/* results: a result for each tensor, device memory, aligned to 8. */
ESP_API esp_status esp_cuda_fake_quantize_scale_gradient(const esp_cuda_plan* plan, const void* table,
                                                         void* workspace,
                                                         esp_cuda_scale_gradient_result* results,
                                                         void* stream);

#ifdef __cplusplus
}
#endif
#endif
