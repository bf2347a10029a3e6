// Scales from observed ranges. One rule for every operation that observes, on every device; float32 throughout, no contraction.
#pragma once
#include <cmath>

#include "espalier/fake_quantize.h"
#include "everywhere.h"

namespace esp {

// Positive, finite, and with a finite reciprocal in float32: 1 / 2^-128 is 2^128, which is not.
ESP_EVERYWHERE inline bool usable_scale(float scale) { return scale > 0x1p-128f && scale <= 3.40282347e+38f; }

// The scale and zero point for values between minimum and maximum (minimum > maximum: there are none).
ESP_EVERYWHERE inline float observed_scale(const esp_quantizer& quantizer, float minimum, float maximum, int32_t* zero_point) {
  const float low = minimum < 0.0f ? minimum : 0.0f, high = maximum > 0.0f ? maximum : 0.0f;
  const float qmin = static_cast<float>(quantizer.qmin), qmax = static_cast<float>(quantizer.qmax);
  const float smallest = quantizer.smallest_scale, of_zeros = smallest > 0.0f ? smallest : 1.0f;
  float scale, zero;
  if (quantizer.symmetric != 0) {
    const float absmax = -low > high ? -low : high;
    scale = absmax == 0.0f ? of_zeros : absmax / quantizer.divisor;
    scale = scale > smallest ? scale : smallest;
    zero = 0.0f;
  } else {
    scale = low == high ? of_zeros : (high - low) / (qmax - qmin);
    scale = scale > smallest ? scale : smallest;
    zero = quantizer.rounding == ESP_ROUND_DIVIDE ? rintf(qmin - low / scale) : qmin - rintf(low / scale);
    zero = zero > qmin ? zero : qmin;  // qmin for NaN, where the scale is not usable
    zero = zero < qmax ? zero : qmax;
  }
  *zero_point = static_cast<int32_t>(zero);
  return scale;
}

}  // namespace esp
