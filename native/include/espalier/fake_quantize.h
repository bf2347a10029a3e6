/*
 * fake_quantize: what a tensor becomes on an integer grid of 2 to 8 bits, and back; with its observers, its gradients,
 * and the real quantize and dequantize of the same grid.
 *
 *   q = clamp(rint(x * (1/s)) + z, qmin, qmax),  y = s * (q - z),  gate = qmin <= rint(x * (1/s)) + z <= qmax
 *
 * in F32, half to even, 1/s rounded once: PyTorch's result on the CPU bit for bit where |x/s| < 2^31. Beyond that, at
 * infinities too, q saturates. NaN gives qmin with gate 0. ESP_ROUND_DIVIDE takes rint(x / s) instead: ONNX Runtime's q.
 *
 * A tensor is seen as [outer, channels, inner], row-major, with one scale s and zero point z a channel; channels = 1 is
 * one scale for the whole tensor.
 *
 * Observers find s and z in the same call, from the finite values only; NaN and infinite values are counted.
 *   symmetric   s = max|x| / divisor, z = 0
 *   affine      s = (max(0, max x) - min(0, min x)) / (qmax - qmin), z = qmin - rint(min(0, min x) / s), clamped;
 *               with ESP_ROUND_DIVIDE z = rint(qmin - min(0, min x) / s), as ONNX Runtime has it
 * A channel of zeros, or without a finite value, gets s = 1 and the z of zero. With a smallest scale no s is below it, and
 * such a channel gets it.
 *
 * All results have the same bits on every instruction set and for every number of threads.
 */
#ifndef ESPALIER_FAKE_QUANTIZE_H
#define ESPALIER_FAKE_QUANTIZE_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_ROUND_MULTIPLY 0 /* by the reciprocal of the scale, as PyTorch */
#define ESP_ROUND_DIVIDE 1   /* by the scale, as ONNX Runtime */

#define ESP_OBSERVER_NONE 0           /* scales and zero points are given */
#define ESP_OBSERVER_MIN_MAX 1        /* the range of this tensor */
#define ESP_OBSERVER_MOVING_AVERAGE 2 /* the running averages of min and max, updated with this tensor's */
#define ESP_OBSERVER_MSE 3            /* the range times the ratio that gives the smallest sum of (y - x)^2 */

typedef struct esp_quantizer {
  int32_t qmin; /* -128 <= qmin < qmax <= 127, or 0 <= qmin < qmax <= 255 */
  int32_t qmax;
  int32_t rounding;
  int32_t observer;
  int32_t symmetric;     /* 0 or 1; read by observers */
  float divisor;         /* symmetric observers: 127 for the grid -127..127, 127.5 for -128..127; > 0 */
  float average;         /* MOVING_AVERAGE: state += average * (value - state), 0 < average <= 1 */
  int32_t clip_steps;    /* MSE: ratios 1 - i * (1 - clip_smallest) / clip_steps for i = 0 .. clip_steps; 1 to 1000 */
  float clip_smallest;   /* MSE: the smallest ratio, 0 < clip_smallest < 1; of equal sums the largest ratio wins */
  float smallest_scale;  /* observers: a usable scale, or 0 for none */
} esp_quantizer;

typedef struct esp_quantized {
  const void* x;       /* outer * channels * inner elements of dtype */
  void* y;             /* fake-quantized, of y_dtype, or NULL; may be x where the types are equal */
  uint8_t* q;          /* quantized, int8 where qmin < 0, else uint8, or NULL */
  uint8_t* gate;       /* bits, or NULL: 1 where the gradient passes */
  float* scale;        /* channels; read where the observer is NONE, else written */
  int32_t* zero_point; /* channels, in qmin .. qmax; read or written like scale; NULL: all 0 (not for affine observers) */
  float* running;      /* MOVING_AVERAGE: channels minima, then channels maxima, in and out; +inf and -inf at first */
  int64_t outer;
  int64_t channels;
  int64_t inner;
  esp_dtype dtype;
  esp_dtype y_dtype; /* dtype or F32 */
  int64_t nan;       /* written: the number of NaN in x */
  int64_t infinite;  /* written: the number of infinities in x */
} esp_quantized;

/*
 * Quantizes a list of count >= 0 tensors in one call. With y, q and gate NULL it only observes.
 *
 * A given scale that is not positive, not finite or so small (at most 2^-128) that its reciprocal overflows, and a zero
 * point outside the grid, are ESP_INVALID_ARGUMENT before anything is written. An observed scale of that kind is
 * ESP_NON_FINITE; outputs and scales are unspecified then, running averages too. Both messages name tensor and channel.
 */
ESP_API esp_status esp_fake_quantize(const esp_quantizer* quantizer, esp_quantized* tensors, int64_t count);

/* The straight-through gradient: grad_x = gate ? grad_y : 0, n elements of dtype. grad_x may be grad_y. */
ESP_API esp_status esp_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n,
                                              esp_dtype dtype);

typedef struct esp_scale_gradient {
  const void* x;             /* outer * channels * inner elements of dtype */
  const void* grad_y;        /* the same */
  void* grad_x;              /* the same, or NULL; may be grad_y */
  const float* scale;        /* channels */
  const int32_t* zero_point; /* channels, or NULL: all 0 */
  float* grad_scale;         /* channels, written */
  float* grad_zero_point;    /* channels, written, or NULL */
  int64_t outer;
  int64_t channels;
  int64_t inner;
  esp_dtype dtype;
  float factor; /* multiplies both gradients: 1 / sqrt(elements a channel * qmax) in the paper */
} esp_scale_gradient;

/*
 * Gradients of a learned scale (Esser et al., Learned Step Size Quantization, 2020, equation 3) and zero point (Bhalgat
 * et al., LSQ+, 2020), with grad_x as in esp_fake_quantize_backward. With v = x * (1/s) or x / s:
 *
 *   dy/ds = rint(v) - v  where the gate is 1,  qmin - z below the grid (and for NaN),  qmax - z above it
 *   dy/dz = 0            where the gate is 1,  -s elsewhere
 *
 * Sums of grad_y times those, in double, in a fixed order, times factor. Of the quantizer qmin, qmax and rounding are read.
 */
ESP_API esp_status esp_fake_quantize_scale_gradient(const esp_quantizer* quantizer, const esp_scale_gradient* gradient);

typedef struct esp_dequantized {
  const uint8_t* q; /* outer * channels * inner, int8 or uint8 */
  void* y;          /* the same number, of dtype */
  const float* scale;
  const int32_t* zero_point; /* NULL: all 0 */
  int64_t outer;
  int64_t channels;
  int64_t inner;
  esp_dtype dtype;
  int32_t is_signed; /* 1: q is int8, 0: uint8 */
} esp_dequantized;

/* y = s * (q - z). Scales must be positive and finite, zero points within the type of q. */
ESP_API esp_status esp_dequantize(const esp_dequantized* tensor);

#ifdef __cplusplus
}
#endif
#endif
