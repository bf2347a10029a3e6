/*
 * kd_softmax_loss on a device: espalier/kd_softmax_loss.h. Pointers among the arguments are device addresses.
 * The calls return when the work is queued; they neither allocate nor wait, and may be captured in a CUDA
 * graph. What differs:
 *
 * - The gradient has the CPU's bits and the terms of the rows are the CPU's; their sum runs in another order,
 *   always the same: each part is within 2^-53 * (rows + 8) of the CPU's, relatively.
 * - Except where rows are held in shared memory, so that memory is read once: rows of more than 2048 classes
 *   whose logits, and gradient where wanted, are all BF16 or all F16, and whose bound is absent or the
 * teacher. There 2^x is the device's own instruction, and a gradient entry before it is rounded is within
 *     2^-16 * ((1 - alpha) * T / N * (p_s + p_t) + alpha / N_valid * h) + 2^-22 * its part of the bound +
 * 2^-126 of the exact one, where h is the student's probability at temperature 1, times T where T is 2 or 4;
 * a 128th of what rounding to BF16 may add. ce is within 2^-16 (times T where T is 2 or 4), kl within 2^-16 *
 * T^2 * (1 + the largest finite |t - s| / T), bound within 2^-18 relatively. The order of these sums depends
 * on the number of classes and on the kind of device: the same bits in each call, not on each device.
 * - A label outside its range shows in the result. No gradient is written then.
 */
#ifndef ESPALIER_CUDA_KD_SOFTMAX_LOSS_H
#define ESPALIER_CUDA_KD_SOFTMAX_LOSS_H

#include "espalier/kd_softmax_loss.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_cuda_kd_softmax_loss_result {
  esp_kd_softmax_loss_result values; /* all 0 where there is a bad row */
  int64_t bad_row; /* the first whose label is neither in [0, C) nor ignore_index; -1: none */
} esp_cuda_kd_softmax_loss_result;

/* Bytes of device memory that a call with such arguments needs; of these sizes, strides, types and absences
 * count. */
ESP_API esp_status esp_cuda_kd_softmax_loss_workspace(const esp_kd_softmax_loss_arguments* arguments,
                                                      int64_t* bytes);

/*
 * workspace: device memory of that many bytes, aligned to 256, zero before its first use; each call leaves it
 * ready for the next with the same rows and classes. One call at a time may use it. result: device memory,
 * aligned to 8.
 */
ESP_API esp_status esp_cuda_kd_softmax_loss(const esp_kd_softmax_loss_arguments* arguments, void* workspace,
                                            esp_cuda_kd_softmax_loss_result* result, void* stream);

#ifdef __cplusplus
}
#endif
#endif
