/* What a step of an optimizer (fused_sgd, fused_adamw) found. */
#ifndef ESPALIER_STEP_RESULT_H
#define ESPALIER_STEP_RESULT_H

#include "espalier/common.h"

typedef struct esp_step_result {
  double norm; /* of mask * gate * gradient over the list; NaN where neither clipping nor skipping asked */
  double clip_factor; /* 1 where nothing was clipped */
  int64_t non_finite; /* NaN and infinite entries among mask * gate * gradient; 0 where not asked for */
  /* Channels whose new scale is NaN, because one of their weights is NaN or infinite after the step. */
  int64_t non_finite_channels;
  int32_t
      skipped; /* whether non-finite gradients left everything as it was; on a device also ESP_STEP_REFUSED */
} esp_step_result;

/* The step changed nothing, because there is no norm to clip by: where the CPU returns ESP_NON_FINITE. */
#define ESP_STEP_REFUSED 2

#endif
