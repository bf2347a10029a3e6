/*
 * The machine's own memory ceilings, for benchmarks and `espalier doctor`: the traffic of the operations without their
 * arithmetic, with the same prefetch, stores and threads.
 */
#ifndef ESPALIER_BANDWIDTH_H
#define ESPALIER_BANDWIDTH_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_TRAFFIC_READ 0      /* reads a */
#define ESP_TRAFFIC_COPY 1      /* reads a, writes b (non-temporal beyond the cache) */
#define ESP_TRAFFIC_UPDATE 2    /* reads and writes a */
#define ESP_TRAFFIC_STEP 3      /* reads a, b, c; writes a, b */
#define ESP_TRAFFIC_STEP_COPY 4 /* reads a, b, c; writes a, b and, non-temporal beyond the cache, d */

/*
 * Moves that traffic once over n F32 elements, n a multiple of 16. Buffers that the kind does not use may be NULL. Values stay what they
 * were, but for b of COPY and d of STEP_COPY, which become copies of a.
 */
ESP_API esp_status esp_traffic(int32_t kind, float* a, float* b, float* c, float* d, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
