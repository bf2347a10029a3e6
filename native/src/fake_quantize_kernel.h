#pragma once
#include "cpu_features.h"
#include "espalier/fake_quantize.h"
#include "fake_quantize_order.h"

namespace esp {

// The grid of a channel: inverse is 1 / scale, zero the zero point.
struct Grid {
  float scale, inverse, zero;
};
// The grids of a window: one for all of its columns, or one for each.
struct GridScale {
  const float* scale;
  const float* inverse;
  const float* zero;
  bool per_column;
};
inline GridScale for_all(const Grid& grid) {
  return {&grid.scale, &grid.inverse, &grid.zero, false};
}

// So many grids the MSE observer tries in one pass over the elements.
constexpr int64_t candidates_at_once = 4;

// One tensor of one call.
struct QuantizeTarget {
  const void* x;
  void* y;        // or nullptr
  uint8_t* q;     // or nullptr
  uint8_t* gate;  // or nullptr
  esp_dtype dtype, y_dtype;
  float qmin, qmax;
  bool divide;
  bool stream;    // non-temporal stores of y
  int64_t ahead;  // bytes from what is read to what is prefetched
};

struct ScaleGradientTarget {
  const void* x;
  const void* grad_y;
  void* grad_x;  // or nullptr
  esp_dtype dtype;
  float qmin, qmax;
  bool divide;
};

struct DequantizeTarget {
  const uint8_t* q;
  void* y;
  esp_dtype dtype;
  bool is_signed, stream;
};

struct NonFinite {
  int64_t nan, infinite;
};

// The range of the finite values; min > max where there are none.
struct ObservedRange {
  float min, max;
  NonFinite non_finite;
};

struct FakeQuantizeKernels {
  // The range of a window; absolute = true gives max|x| as max and -max|x| as min. With ahead > 0 it fetches
  // one cache line in four that many bytes ahead, in place of what it reads next, and leaves the other three
  // to apply().
  ObservedRange (*observe)(esp_dtype dtype, const void* x, const Window& window, bool absolute,
                           int64_t ahead);
  // Extends the ranges min[column], max[column]; absolute = true extends max by |x| and leaves min alone.
  NonFinite (*observe_columns)(esp_dtype dtype, const void* x, const Window& window, bool absolute,
                               float* min, float* max);
  // Writes y, q and gate. The bits of a row start at any bit; those before it in its first byte are kept.
  // After the last window of a thread with `stream`, fence().
  NonFinite (*apply)(const QuantizeTarget& target, const Window& window, const GridScale& scale);
  // The sum of (y - x)^2 over finite x of `count` segments of one channel, for each of `candidates` grids, at
  // most candidates_at_once.
  void (*error_rows)(const QuantizeTarget& target, const Window* segments, int64_t count, const Grid* grids,
                     int64_t candidates, double* sums);
  // That sum for each column of a chunk of a matrix, whose last row has only `in_last` of its columns (0 or
  // less: none).
  void (*error_columns)(const QuantizeTarget& target, const Window& chunk, int64_t in_last,
                        const GridScale& scale, double* sum);
  // Writes grad_x; the sums of grad_y * dy/ds and grad_y * dy/dz over `count` segments of one channel.
  void (*scale_gradient_rows)(const ScaleGradientTarget& target, const Window* segments, int64_t count,
                              const Grid& grid, double* scale_sum, double* zero_sum);
  void (*scale_gradient_columns)(const ScaleGradientTarget& target, const Window& chunk, int64_t in_last,
                                 const GridScale& scale, double* scale_sum, double* zero_sum);
  void (*dequantize)(const DequantizeTarget& target, const Window& window, const GridScale& scale);
  // out = gate ? in : 0 for n elements; gate starts at a byte.
  void (*backward)(esp_dtype dtype, const void* in, const uint8_t* gate, void* out, int64_t n, bool stream);
  // Makes streamed outputs visible.
  void (*fence)();
};

}  // namespace esp

ESP_DECLARE_VARIANTS(FakeQuantizeKernels, fake_quantize)
