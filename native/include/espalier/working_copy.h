/*
 * What the fused optimizer steps (fused_sgd, fused_adamw) can write beside the latent weights while a row of
 * them is in the cache: the copy that forward sees, its scales, and the gate that makes the next gradient
 * straight-through. A channel at a time:
 *
 *   scale = absmax / 127
 *   working copy = scale * clamp(rint(weight * (1 / scale)), -127, 127)
 *   gate = -127 <= rint(weight * (1 / scale)) <= 127
 *
 * A channel of zeros has scale 1, and so has one whose absmax is too small for a scale with a finite
 * reciprocal (below 3.8e-37). A NaN weight has integer -127 and gate 0.
 */
#ifndef ESPALIER_WORKING_COPY_H
#define ESPALIER_WORKING_COPY_H

/* Working copies. */
#define ESP_COPY_NONE 0
#define ESP_COPY_F32 1
#define ESP_COPY_BF16 2
#define ESP_COPY_F16 3
#define ESP_COPY_INT8 4 /* the integers themselves; needs scale */

/* What has a scale of its own. */
#define ESP_CHANNEL_TENSOR 0 /* the tensor: 1 scale */
#define ESP_CHANNEL_ROW 1    /* each row: rows scales (axis 0; output channels of Linear and Conv) */
#define ESP_CHANNEL_COLUMN 2 /* each column: cols scales (last axis; output channels of an ONNX MatMul) */

#endif
