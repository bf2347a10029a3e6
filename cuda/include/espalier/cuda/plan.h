/*
 * How an operation over a list of tensors runs on a device without allocating and without waiting.
 *
 * 1. esp_cuda_<operation>_plan(list, ..., plan, NULL) says in `plan` how much memory the operation needs;
 * called again with `table` it also writes the table there: plain bytes in host memory, which the caller
 * copies to device memory.
 * 2. esp_cuda_<operation>(plan, table, workspace, ..., stream) queues the operation on the stream. `table`
 * and `workspace` are device memory of that many bytes, aligned to 256 (as esp_cuda_allocate gives).
 *
 * A plan holds while tensors, sizes and addresses stay the same; it can be used any number of times, and a
 * call may be captured in a CUDA graph (drivers before CUDA 12.3 load no kernel then: there a call must have
 * run before). The workspace must be zero before its first use; each call leaves it
 * ready for the next. One call at a time may use a workspace. Pointers in a list are device addresses,
 * aligned to their element.
 *
 * A call returns when the work is queued: results lie in device memory, and errors of the work itself show
 * when the stream is waited for.
 */
#ifndef ESPALIER_CUDA_PLAN_H
#define ESPALIER_CUDA_PLAN_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_cuda_plan {
  int64_t table_bytes;
  int64_t workspace_bytes;
  int64_t operation[8]; /* what the launch needs to know; the operation's own */
} esp_cuda_plan;

#ifdef __cplusplus
}
#endif
#endif
