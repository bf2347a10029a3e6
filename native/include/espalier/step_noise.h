/* The noise of differentially private learning (DP-SGD, Abadi and others, 2016) in a step of an optimizer. */
#ifndef ESPALIER_STEP_NOISE_H
#define ESPALIER_STEP_NOISE_H

#include "espalier/common.h"

/*
 * A gradient that is a sum of clipped gradients of examples (dp_accumulate, linear) gets noise on its way
 * into the update, in registers:
 *
 *   d = (d + sigma * z) / divisor   where mask and gate pass, else 0
 *
 * after the clip factor (which clips the sum as it is, by its norm without noise: what is added is never
 * clipped) and before `maximize`, weight decay and moments. Whether a step is skipped for a gradient that is
 * not finite is decided on the sum without noise. Norm and number of entries in the result are those of the
 * sum without noise, and so not private.
 *
 * z are independent standard normal numbers: z[2i], z[2i + 1] = r cos(2 pi v), r sin(2 pi v) with
 * r = sqrt(-2 log u) (Box and Muller) in double, rounded to float after the multiplication by sigma. u in
 * (0, 1] and v in [0, 1) are multiples of 2^-53 made of block counter + i of Philox 4x32-10 (Salmon and
 * others, 2011) under a key. A tensor of n elements takes (n + 1) / 2 blocks, masked elements included, and
 * the next one goes on where it ended. The upper half of the 128-bit counter is 1. The same bits on every
 * instruction set and device, for every number of threads.
 *
 * Who knows key and counter knows the noise: keep the key secret, and take each block once.
 */
typedef struct esp_step_noise {
  double sigma;    /* finite, >= 0: the deviation; 0 asks for no noise, and nothing below is read */
  double divisor;  /* finite, > 0: the number of examples of a batch */
  int64_t key;     /* any */
  int64_t counter; /* the first block; the caller moves it on after each step */
} esp_step_noise;

#endif
