/*
 * fake_quantize on a device: espalier/fake_quantize.h, with the same bits in y, q, gate, scales and zero
 * points. Conventions: plan.h. What differs:
 *
 * - Observers are NONE, MIN_MAX and MOVING_AVERAGE; MSE, a search for calibration, is ESP_UNSUPPORTED here:
 * fake_quantize_clip.h finds its scales.
 * Running averages of a tensor whose minimum or maximum is 0 may hold -0 for 0.
 * - Counts, and scales that cannot be used, are results in device memory: nothing here reads it. Outputs of a
 * tensor with such a channel are unspecified.
 * - esp_quantized.nan and .infinite are not written. x may be y where the types are equal; no other overlap.
 */
#ifndef ESPALIER_CUDA_FAKE_QUANTIZE_H
#define ESPALIER_CUDA_FAKE_QUANTIZE_H

#include "espalier/cuda/plan.h"
#include "espalier/fake_quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_cuda_quantize_result {
  int64_t nan;
  int64_t infinite;
  int64_t bad_channel; /* the first whose scale or its reciprocal is not positive and finite; -1: none */
} esp_cuda_quantize_result;

/* The table holds the quantizer too. */
ESP_API esp_status esp_cuda_fake_quantize_plan(const esp_quantizer* quantizer, const esp_quantized* tensors,
                                               int64_t count, esp_cuda_plan* plan, void* table);

/* results: a result for each tensor, device memory, aligned to 8. */
ESP_API esp_status esp_cuda_fake_quantize(const esp_cuda_plan* plan, const void* table, void* workspace,
                                          esp_cuda_quantize_result* results, void* stream);

/* As esp_fake_quantize_backward, without plan or workspace. */
ESP_API esp_status esp_cuda_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x,
                                                   int64_t n, esp_dtype dtype, void* stream);

/* As esp_dequantize, without plan or workspace; scales and zero points are not checked. */
ESP_API esp_status esp_cuda_dequantize(const esp_dequantized* tensor, void* stream);

#ifdef __cplusplus
}
#endif
#endif
