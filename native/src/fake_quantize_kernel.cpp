// fake_quantize over a window of rows and columns, with one scale or one scale a column:
//
//   q = clamp(rint(x * (1/s)) + z, qmin, qmax), y = s * (q - z), gate bits; ranges for observers
//
// Sums over channels are in fake_quantize_sum_lanes.h. Numerics: F32 lanes, half to even; q is exact in F32.
// Bytes: x once, y once past the cache where it is large. Bulk: 16 elements a turn; where y is streamed, a
// head up to its first whole cache line; tail: the same on zero-filled lanes.
#include "fake_quantize_kernel.h"

#include "fake_quantize_lanes.h"
#include "fake_quantize_scale_lanes.h"
#include "fake_quantize_sum_lanes.h"

namespace {

using esp::GridScale;
using esp::NonFinite;
using esp::Window;

constexpr int32_t infinity_bits = 0x7f800000;

struct nothing {};  // the element type of an output that is not wanted

template <class Y>
ESP_INLINE void put(Y* y, int64_t i, f32x16 v, bool) {
  store(y + i, v);
}
ESP_INLINE void put(float* y, int64_t i, f32x16 v, bool streaming) {
  if (streaming) {
    ::stream(y + i, v);
  } else {
    store(y + i, v);
  }
}
ESP_INLINE void put(nothing*, int64_t, f32x16, bool) {}
template <class Y>
ESP_INLINE void put_n(Y* y, int64_t i, f32x16 v, int64_t n) {
  store_n(y + i, v, n);
}
ESP_INLINE void put_n(nothing*, int64_t, f32x16, int64_t) {}

ESP_INLINE void prefetch_ahead(const void* p, int64_t bytes) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)), 0, 3);
}

// Elements of a row before the first whole cache line of y.
ESP_INLINE int64_t head_of(const float* y, int64_t columns) {
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(y) % 64 / 4);
  return head < columns ? head : columns;
}

// Appends bits to a field from any bit on. Bytes are written when they are complete, the last one by
// finish().
class BitWriter {
 public:
  ESP_MEMBER BitWriter(uint8_t* bits, int64_t first)
      : next_(bits + (first >> 3)), held_(static_cast<int>(first & 7)) {
    pending_ = held_ > 0 ? *next_ & ((1u << held_) - 1) : 0;
  }
  ESP_MEMBER void put(uint16_t bits) {
    pending_ |= static_cast<uint32_t>(bits) << held_;
    const uint16_t out = static_cast<uint16_t>(pending_);
    __builtin_memcpy(next_, &out, 2);
    next_ += 2;
    pending_ >>= 16;
  }
  ESP_MEMBER void put_n(uint16_t bits, int64_t n) {
    pending_ |= (bits & ((1u << n) - 1)) << held_;
    for (held_ += static_cast<int>(n); held_ >= 8; held_ -= 8) {
      *next_++ = static_cast<uint8_t>(pending_);
      pending_ >>= 8;
    }
  }
  ESP_MEMBER void finish() {
    if (held_ > 0) *next_ = static_cast<uint8_t>(pending_);
  }

 private:
  uint8_t* next_;
  uint32_t pending_;  // fewer than 8 bits between calls
  int held_;
};

ESP_INLINE void count_non_finite(NonFinite& found, f32x16 x) {
  const int nan = count(is_nan(x));
  found.nan += nan;
  found.infinite += 16 - nan - count(abs(x) <= set1(largest_float));
}

// ---- apply

// Elements begin to end of one row, whole vectors. `plain`: neither gate nor q is wanted.
template <class T, class Y, class Scale, bool divide, bool plain>
void apply_bulk(const esp::QuantizeTarget& t, int64_t first, int64_t begin, int64_t end,
                const GridScale& scales, BitWriter& bits, NonFinite& found) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest_float);
  const T* const x = static_cast<const T*>(t.x) + first;
  Y* const y = static_cast<Y*>(t.y);
  int8_t* const q = t.q == nullptr ? nullptr : reinterpret_cast<int8_t*>(t.q) + first;
  const Scale scale(scales, divide);
  const bool streaming = t.stream, gated = t.gate != nullptr;
  const int64_t ahead = t.ahead;
  BitWriter gate = bits;
  for (int64_t i = begin; i < end; i += 16) {
    const f32x16 v = load(x + i);
    prefetch_ahead(x + i, ahead);
    if (__builtin_expect(bits_of(abs(v) <= finite) != 0xffff, 0)) count_non_finite(found, v);
    const f32x16 zero = scale.zero(i, 16), position = grid_position(v, scale.by(i, 16), zero, divide);
    const f32x16 c = clamp_position(position, qmin, qmax);
    if (!plain && gated) gate.put(bits_of(gate_of(position, qmin, qmax)));
    if (!plain && q != nullptr) store_bytes(q + i, to_int(c));
    put(y, first + i, grid_value(c, scale.scale(i, 16), zero), streaming);
  }
  bits = gate;
}

template <class T, class Y, class Scale>
NonFinite apply_to(const esp::QuantizeTarget& t, const Window& w, const GridScale& scales) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax);
  const Scale scale(scales, t.divide);
  const bool plain = t.q == nullptr && t.gate == nullptr;
  const auto bulk = t.divide
                        ? plain ? apply_bulk<T, Y, Scale, true, true> : apply_bulk<T, Y, Scale, true, false>
                    : plain ? apply_bulk<T, Y, Scale, false, true>
                            : apply_bulk<T, Y, Scale, false, false>;
  NonFinite found = {0, 0};
  for (int64_t r = 0; r < w.rows; r++) {
    const int64_t first = w.first + r * w.stride;
    const T* const x = static_cast<const T*>(t.x) + first;
    uint8_t nowhere[4];
    BitWriter gate(t.gate == nullptr ? nowhere : t.gate, t.gate == nullptr ? 0 : first);
    const auto part = [&](int64_t i, int64_t n) {
      const f32x16 v = load_n(x + i, n);
      if (bits_of(abs(v) <= set1(largest_float)) != 0xffff) count_non_finite(found, v);
      const f32x16 zero = scale.zero(i, n), position = grid_position(v, scale.by(i, n), zero, t.divide);
      const f32x16 c = clamp_position(position, qmin, qmax);
      if (t.gate != nullptr) gate.put_n(bits_of(gate_of(position, qmin, qmax)), n);
      if (t.q != nullptr) {
        int8_t lanes[16];
        store_bytes(lanes, to_int(c));
        __builtin_memcpy(t.q + first + i, lanes, static_cast<size_t>(n));
      }
      put_n(static_cast<Y*>(t.y), first + i, grid_value(c, scale.scale(i, n), zero), n);
    };
    int64_t i = 0;
    if constexpr (__is_same(Y, float)) {
      if (t.stream) i = head_of(static_cast<float*>(t.y) + first, w.columns);
      if (i > 0) part(0, i);
    }
    const int64_t end = i + ((w.columns - i) & ~int64_t{15});
    if (i < end) bulk(t, first, i, end, scales, gate, found);
    if (end < w.columns) part(end, w.columns - end);
    if (t.gate != nullptr) gate.finish();
  }
  return found;
}

template <class T, class Y>
NonFinite apply_as(const esp::QuantizeTarget& t, const Window& w, const GridScale& scale) {
  return scale.per_column ? apply_to<T, Y, PerColumn>(t, w, scale) : apply_to<T, Y, Constant>(t, w, scale);
}

template <class T>
NonFinite apply_from(const esp::QuantizeTarget& t, const Window& w, const GridScale& scale) {
  if (t.y == nullptr) return apply_as<T, nothing>(t, w, scale);
  return t.y_dtype == t.dtype ? apply_as<T, T>(t, w, scale) : apply_as<T, float>(t, w, scale);
}

NonFinite apply(const esp::QuantizeTarget& t, const Window& w, const GridScale& scale) {
  return with_dtype(t.dtype, [&](auto element) { return apply_from<decltype(element)>(t, w, scale); });
}

// ---- observe

// Lanes of a running range. The largest magnitude as an integer is infinity or above where one is not finite.
struct RangeLanes {
  f32x16 min, max;
  i32x16 magnitude;
};

template <bool absolute>
ESP_INLINE void extend(RangeLanes& range, f32x16 x) {
  range.magnitude = max(range.magnitude, bits_of(abs(x)));
  if (!absolute) {
    range.min = min(x, range.min);
    range.max = max(x, range.max);
  }
}

template <class T, bool absolute>
esp::ObservedRange observe_as(const void* data, const Window& w, int64_t ahead) {
  const float inf = __builtin_inff();
  RangeLanes a{set1(inf), set1(-inf), set1(0)}, b = a, c = a, d = a;
  for (int64_t r = 0; r < w.rows; r++) {
    const T* x = static_cast<const T*>(data) + w.first + r * w.stride;
    int64_t i = 0;
    for (; i + 64 <= w.columns; i += 64) {
      if (ahead > 0) {
        prefetch_ahead(x + i, ahead);
      } else {
        for (int line = 0; line < 64; line += 64 / static_cast<int>(sizeof(T))) prefetch(x + i + line);
      }
      extend<absolute>(a, load(x + i));
      extend<absolute>(b, load(x + i + 16));
      extend<absolute>(c, load(x + i + 32));
      extend<absolute>(d, load(x + i + 48));
    }
    for (; i + 16 <= w.columns; i += 16) extend<absolute>(a, load(x + i));
    if (i < w.columns) {
      // Lanes past the end repeat the row's last element, which changes no range.
      T lanes[16];
      for (int k = 0; k < 16; k++) lanes[k] = x[i + k < w.columns ? i + k : w.columns - 1];
      extend<absolute>(a, load(lanes));
    }
  }
  const i32x16 magnitude = max(max(a.magnitude, b.magnitude), max(c.magnitude, d.magnitude));
  int32_t magnitudes[16], worst = 0;
  store(magnitudes, magnitude);
  for (int k = 0; k < 16; k++) worst = magnitudes[k] > worst ? magnitudes[k] : worst;
  esp::ObservedRange range = {inf, -inf, {0, 0}};
  if (worst < infinity_bits) {
    if (absolute) {
      if (w.rows > 0 && w.columns > 0) {
        __builtin_memcpy(&range.max, &worst, 4);
        range.min = -range.max;
      }
    } else {
      range.min = reduce_min(min(min(a.min, b.min), min(c.min, d.min)));
      range.max = reduce_max(max(max(a.max, b.max), max(c.max, d.max)));
    }
    return range;
  }
  // Rare: count what is not finite, and range over the rest.
  f32x16 low = set1(inf), high = set1(-inf);
  for (int64_t r = 0; r < w.rows; r++) {
    const T* x = static_cast<const T*>(data) + w.first + r * w.stride;
    for (int64_t i = 0; i < w.columns; i += 16) {
      const int64_t n = w.columns - i < 16 ? w.columns - i : 16;
      const f32x16 v = load_n(x + i, n);
      const mask16 valid = first_lanes(n) & (abs(v) <= set1(largest_float));
      count_non_finite(range.non_finite, v);
      const f32x16 magnitudes_of = abs(v);
      low = select(valid, min(absolute ? set1(0.0f) - magnitudes_of : v, low), low);
      high = select(valid, max(absolute ? magnitudes_of : v, high), high);
    }
  }
  range.min = reduce_min(low);
  range.max = reduce_max(high);
  return range;
}

template <class T>
esp::ObservedRange observe_from(const void* x, const Window& w, bool absolute, int64_t ahead) {
  return absolute ? observe_as<T, true>(x, w, ahead) : observe_as<T, false>(x, w, ahead);
}

esp::ObservedRange observe(esp_dtype dtype, const void* x, const Window& w, bool absolute, int64_t ahead) {
  return with_dtype(dtype,
                    [&](auto element) { return observe_from<decltype(element)>(x, w, absolute, ahead); });
}

// Four rows at a time, so that a column's range is loaded and stored once for four elements.
template <class T, bool absolute>
NonFinite observe_columns_as(const void* data, const Window& w, float* low, float* high) {
  NonFinite found = {0, 0};
  const f32x16 finite = set1(largest_float);
  const auto lone = [&](const T* x, int64_t i, int64_t n) __attribute__((always_inline)) {
    const f32x16 v = load_n(x + i, n), magnitude = abs(v);
    const mask16 valid = magnitude <= finite;
    if (bits_of(valid) != 0xffff) count_non_finite(found, v);
    const f32x16 h = load_n(high + i, n);
    store_n(high + i, select(valid, max(absolute ? magnitude : v, h), h), n);
    if (!absolute) {
      const f32x16 l = load_n(low + i, n);
      store_n(low + i, select(valid, min(v, l), l), n);
    }
  };
  for (int64_t r = 0; r < w.rows;) {
    const T* x = static_cast<const T*>(data) + w.first + r * w.stride;
    const int64_t rows = w.rows - r < 4 ? 1 : 4;
    int64_t i = 0;
    for (; rows == 4 && i + 16 <= w.columns; i += 16) {
      const T* next = x + 4 * w.stride + i;
      for (int k = 0; k < 4; k++) prefetch_ahead(next, k * w.stride * static_cast<int64_t>(sizeof(T)));
      const f32x16 a = load(x + i), b = load(x + w.stride + i), c = load(x + 2 * w.stride + i),
                   d = load(x + 3 * w.stride + i);
      const i32x16 worst = max(max(bits_of(abs(a)), bits_of(abs(b))), max(bits_of(abs(c)), bits_of(abs(d))));
      if (__builtin_expect(bits_of(float_of_bits(worst) <= finite) != 0xffff, 0)) {
        for (int k = 0; k < 4; k++) lone(x + k * w.stride, i, 16);
      } else if (absolute) {
        store(high + i, max(float_of_bits(worst), load(high + i)));
      } else {
        store(low + i, min(min(min(a, b), min(c, d)), load(low + i)));
        store(high + i, max(max(max(a, b), max(c, d)), load(high + i)));
      }
    }
    for (; i < w.columns; i += 16) {
      for (int k = 0; k < rows; k++) lone(x + k * w.stride, i, w.columns - i < 16 ? w.columns - i : 16);
    }
    r += rows;
  }
  return found;
}

template <class T>
NonFinite observe_columns_from(const void* x, const Window& w, bool absolute, float* low, float* high) {
  return absolute ? observe_columns_as<T, true>(x, w, low, high)
                  : observe_columns_as<T, false>(x, w, low, high);
}

NonFinite observe_columns(esp_dtype dtype, const void* x, const Window& w, bool absolute, float* low,
                          float* high) {
  return with_dtype(dtype, [&](auto element) {
    return observe_columns_from<decltype(element)>(x, w, absolute, low, high);
  });
}

// ---- dequantize and backward

template <class Q, class Y, class Scale>
void dequantize_to(const esp::DequantizeTarget& t, const Window& w, const GridScale& scales) {
  const Scale scale(scales, false);
  const bool streaming = t.stream;
  for (int64_t r = 0; r < w.rows; r++) {
    const int64_t first = w.first + r * w.stride;
    const Q* q = reinterpret_cast<const Q*>(t.q) + first;
    Y* const y = static_cast<Y*>(t.y) + first;
    const auto part = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Q lanes[16] = {};
      __builtin_memcpy(lanes, q + i, static_cast<size_t>(n));
      put_n(y, i, grid_value(to_float(load_bytes(lanes)), scale.scale(i, n), scale.zero(i, n)), n);
    };
    int64_t i = 0;
    if constexpr (__is_same(Y, float)) {
      if (t.stream) i = head_of(y, w.columns);
      if (i > 0) part(0, i);
    }
    for (; i + 16 <= w.columns; i += 16) {
      put(y, i, grid_value(to_float(load_bytes(q + i)), scale.scale(i, 16), scale.zero(i, 16)), streaming);
    }
    if (i < w.columns) part(i, w.columns - i);
  }
}

template <class Q, class Y>
void dequantize_as(const esp::DequantizeTarget& t, const Window& w, const GridScale& scale) {
  if (scale.per_column) {
    dequantize_to<Q, Y, PerColumn>(t, w, scale);
  } else {
    dequantize_to<Q, Y, Constant>(t, w, scale);
  }
}

template <class Y>
void dequantize_from(const esp::DequantizeTarget& t, const Window& w, const GridScale& scale) {
  if (t.is_signed) {
    dequantize_as<int8_t, Y>(t, w, scale);
  } else {
    dequantize_as<uint8_t, Y>(t, w, scale);
  }
}

void dequantize(const esp::DequantizeTarget& t, const Window& w, const GridScale& scale) {
  return with_dtype(t.dtype, [&](auto element) { return dequantize_from<decltype(element)>(t, w, scale); });
}

template <class T>
void backward_as(const T* in, const uint8_t* gate, T* out, int64_t n, bool streaming) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    prefetch(in + i);
    put(out, i, keep(mask_of(load_bits(gate, i)), load(in + i)), streaming);
  }
  if (i < n) store_n(out + i, keep(mask_of(load_bits_n(gate, i, n - i)), load_n(in + i, n - i)), n - i);
}

void backward(esp_dtype dtype, const void* in, const uint8_t* gate, void* out, int64_t n, bool streaming) {
  with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    backward_as(static_cast<const T*>(in), gate, static_cast<T*>(out), n, streaming);
  });
}

}  // namespace

namespace esp {
extern const FakeQuantizeKernels ESP_VARIANT(fake_quantize);
const FakeQuantizeKernels ESP_VARIANT(fake_quantize) = {observe,
                                                        observe_columns,
                                                        apply,
                                                        error_rows,
                                                        error_columns,
                                                        scale_gradient_rows,
                                                        scale_gradient_columns,
                                                        dequantize,
                                                        backward,
                                                        ::fence};
}  // namespace esp
