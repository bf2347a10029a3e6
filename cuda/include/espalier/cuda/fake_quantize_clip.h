/*
 * The search of fake_quantize's MSE observer on a device: scales and zero points of a list of tensors from
 * the ranges of their channels, with the bits that esp_fake_quantize finds with ESP_OBSERVER_MSE.
 * Conventions: plan.h. Of a tensor x, running, its shape and type are read, scale and zero_point written.
 *
 * Ranges are what esp_cuda_fake_quantize leaves in `running` with ESP_OBSERVER_MOVING_AVERAGE, where it was
 * +inf and -inf before. A channel whose range gives a scale that cannot be used gets that scale, and
 * esp_cuda_fake_quantize with ESP_OBSERVER_NONE, which quantizes with what was found here, reports it.
 */
#ifndef ESPALIER_CUDA_FAKE_QUANTIZE_CLIP_H
#define ESPALIER_CUDA_FAKE_QUANTIZE_CLIP_H

#include "espalier/cuda/plan.h"
#include "espalier/fake_quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The table holds the quantizer too. */
ESP_API esp_status esp_cuda_fake_quantize_clip_plan(const esp_quantizer* quantizer,
                                                    const esp_quantized* tensors, int64_t count,
                                                    esp_cuda_plan* plan, void* table);

/* Some launches for each four ratios. */
ESP_API esp_status esp_cuda_fake_quantize_clip(const esp_cuda_plan* plan, const void* table, void* workspace,
                                               void* stream);

#ifdef __cplusplus
}
#endif
#endif
