// fake_quantize over a window of rows and columns, with one scale or one scale a column:
//
//   q = clamp(rint(x * (1/s)) + z, qmin, qmax), y = s * (q - z), gate bits, sums for observers and gradients
//
// Numerics: F32 lanes, half to even; q is exact in F32; sums in double, lane by lane down the window, then a fixed tree.
// Bytes: x once, y once past the cache where it is large. Bulk: 16 elements a turn; where y is streamed, a head up to its
// first whole cache line; tail: the same on zero-filled lanes.
#include "fake_quantize_kernel.h"

#include "fake_quantize_lanes.h"

namespace {

using esp::GridScale;
using esp::NonFinite;
using esp::Window;

constexpr float largest = 3.40282347e+38f;
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
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)), 0, 3);
}

// Elements of a row before the first whole cache line of y.
ESP_INLINE int64_t head_of(const float* y, int64_t columns) {
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(y) % 64 / 4);
  return head < columns ? head : columns;
}

// Appends bits to a field from any bit on. Bytes are written when they are complete, the last one by finish().
class BitWriter {
 public:
  ESP_MEMBER BitWriter(uint8_t* bits, int64_t first) : next_(bits + (first >> 3)), held_(static_cast<int>(first & 7)) {
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

// The scales of a window's columns: one each, or one for all, kept in registers. by() is what grid_position takes. (Not
// one struct of vectors: GCC 12 copies such a struct through the stack in every turn.)
struct PerColumn {
  const float* scales;
  const float* bys;
  const float* zeros;
  ESP_MEMBER PerColumn(const GridScale& s, bool divide)
      : scales(s.scale), bys(divide ? s.scale : s.inverse), zeros(s.zero) {}
  ESP_MEMBER f32x16 scale(int64_t i) const { return load(scales + i); }
  ESP_MEMBER f32x16 by(int64_t i) const { return load(bys + i); }
  ESP_MEMBER f32x16 zero(int64_t i) const { return load(zeros + i); }
  ESP_MEMBER f32x16 scale_n(int64_t i, int64_t n) const { return load_n(scales + i, n); }
  // 1 where there is no column, so that dividing stays harmless.
  ESP_MEMBER f32x16 by_n(int64_t i, int64_t n) const {
    return select(mask_of(static_cast<uint16_t>((1u << n) - 1)), load_n(bys + i, n), set1(1.0f));
  }
  ESP_MEMBER f32x16 zero_n(int64_t i, int64_t n) const { return load_n(zeros + i, n); }
};
struct Constant {
  f32x16 scale_lanes, by_lanes, zero_lanes;
  ESP_MEMBER Constant(const GridScale& s, bool divide)
      : scale_lanes(set1(*s.scale)), by_lanes(set1(divide ? *s.scale : *s.inverse)), zero_lanes(set1(*s.zero)) {}
  ESP_MEMBER f32x16 scale(int64_t) const { return scale_lanes; }
  ESP_MEMBER f32x16 by(int64_t) const { return by_lanes; }
  ESP_MEMBER f32x16 zero(int64_t) const { return zero_lanes; }
  ESP_MEMBER f32x16 scale_n(int64_t, int64_t) const { return scale_lanes; }
  ESP_MEMBER f32x16 by_n(int64_t, int64_t) const { return by_lanes; }
  ESP_MEMBER f32x16 zero_n(int64_t, int64_t) const { return zero_lanes; }
};

ESP_INLINE void count_non_finite(NonFinite& found, f32x16 x) {
  const int nan = count(is_nan(x));
  found.nan += nan;
  found.infinite += 16 - nan - count(abs(x) <= set1(largest));
}

// ---- apply

// Elements begin to end of one row, whole vectors. `plain`: neither gate nor q is wanted.
template <class T, class Y, class Scale, bool divide, bool plain>
void apply_bulk(const esp::QuantizeTarget& t, int64_t first, int64_t begin, int64_t end, const GridScale& scales, BitWriter& bits,
                NonFinite& found) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest);
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
    const f32x16 zero = scale.zero(i), position = grid_position(v, scale.by(i), zero, divide);
    const f32x16 c = clamp_position(position, qmin, qmax);
    if (!plain && gated) gate.put(bits_of(gate_of(position, qmin, qmax)));
    if (!plain && q != nullptr) store_bytes(q + i, to_int(c));
    put(y, first + i, grid_value(c, scale.scale(i), zero), streaming);
  }
  bits = gate;
}

template <class T, class Y, class Scale>
NonFinite apply_to(const esp::QuantizeTarget& t, const Window& w, const GridScale& scales) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax);
  const Scale scale(scales, t.divide);
  const bool plain = t.q == nullptr && t.gate == nullptr;
  const auto bulk = t.divide ? plain ? apply_bulk<T, Y, Scale, true, true> : apply_bulk<T, Y, Scale, true, false>
                    : plain  ? apply_bulk<T, Y, Scale, false, true>
                             : apply_bulk<T, Y, Scale, false, false>;
  NonFinite found = {0, 0};
  for (int64_t r = 0; r < w.rows; r++) {
    const int64_t first = w.first + r * w.stride;
    const T* const x = static_cast<const T*>(t.x) + first;
    uint8_t nowhere[4];
    BitWriter gate(t.gate == nullptr ? nowhere : t.gate, t.gate == nullptr ? 0 : first);
    const auto part = [&](int64_t i, int64_t n) {
      const f32x16 v = load_n(x + i, n);
      if (bits_of(abs(v) <= set1(largest)) != 0xffff) count_non_finite(found, v);
      const f32x16 zero = scale.zero_n(i, n), position = grid_position(v, scale.by_n(i, n), zero, t.divide);
      const f32x16 c = clamp_position(position, qmin, qmax);
      if (t.gate != nullptr) gate.put_n(bits_of(gate_of(position, qmin, qmax)), n);
      if (t.q != nullptr) {
        int8_t lanes[16];
        store_bytes(lanes, to_int(c));
        __builtin_memcpy(t.q + first + i, lanes, static_cast<size_t>(n));
      }
      put_n(static_cast<Y*>(t.y), first + i, grid_value(c, scale.scale_n(i, n), zero), n);
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
      const mask16 valid = mask_of(static_cast<uint16_t>((1u << n) - 1)) & (abs(v) <= set1(largest));
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
  return with_dtype(dtype, [&](auto element) { return observe_from<decltype(element)>(x, w, absolute, ahead); });
}

// Four rows at a time, so that a column's range is loaded and stored once for four elements.
template <class T, bool absolute>
NonFinite observe_columns_as(const void* data, const Window& w, float* low, float* high) {
  NonFinite found = {0, 0};
  const f32x16 finite = set1(largest);
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
      const f32x16 a = load(x + i), b = load(x + w.stride + i), c = load(x + 2 * w.stride + i), d = load(x + 3 * w.stride + i);
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
  return absolute ? observe_columns_as<T, true>(x, w, low, high) : observe_columns_as<T, false>(x, w, low, high);
}

NonFinite observe_columns(esp_dtype dtype, const void* x, const Window& w, bool absolute, float* low, float* high) {
  return with_dtype(dtype, [&](auto element) { return observe_columns_from<decltype(element)>(x, w, absolute, low, high); });
}

// ---- sums

// A sum in double, 16 lanes wide.
struct SumLanes {
  f64x8 low, high;
};
ESP_INLINE void add_product(SumLanes& sum, f32x16 a, f32x16 b) {
  sum.low = fma(low_f64(a), low_f64(b), sum.low);
  sum.high = fma(high_f64(a), high_f64(b), sum.high);
}
ESP_INLINE void store_sum(double* to, const SumLanes& sum, int64_t n) {
  double lanes[16];
  store(lanes, sum.low);
  store(lanes + 8, sum.high);
  for (int64_t k = 0; k < n; k++) to[k] = lanes[k];
}
ESP_INLINE double total(const SumLanes& sum) {
  double lanes[8];
  store(lanes, sum.low + sum.high);
  for (int half = 4; half > 0; half /= 2) {
    for (int k = 0; k < half; k++) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}

ESP_INLINE void add_segment(SumLanes& sum, SumLanes& segment) {
  sum.low = sum.low + segment.low;
  sum.high = sum.high + segment.high;
  segment = {zero_f64(), zero_f64()};
}

// turn(at, i, n) for n elements from flat index `at` on, in columns i and on, of each row of the segments of a channel;
// done() after each segment.
template <class Turn, class Done>
ESP_INLINE void walk_rows(const Window* segments, int64_t count, const Turn& turn, const Done& done) {
  for (int64_t s = 0; s < count; s++) {
    const Window w = segments[s];
    for (int64_t r = 0; r < w.rows; r++) {
      const int64_t first = w.first + r * w.stride;
      int64_t i = 0;
      for (; i + 16 <= w.columns; i += 16) turn(first + i, i, 16);
      if (i < w.columns) turn(first + i, i, w.columns - i);
    }
    done();
  }
}
// The same down each 16 columns of a chunk, so that sums stay in registers; column(i, n) after each of them.
template <class Turn, class Done, class Column>
ESP_INLINE void walk_columns(const Window& w, int64_t in_last, const Turn& turn, const Done& done, const Column& column) {
  for (int64_t i = 0; i < w.columns; i += 16) {
    const int64_t n = w.columns - i < 16 ? w.columns - i : 16, last = in_last - i < n ? in_last - i : n;
    const int64_t rows = last < n ? w.rows - 1 : w.rows;
    for (int64_t top = 0; top < w.rows; top += esp::segment_rows) {
      const int64_t bottom = top + esp::segment_rows < rows ? top + esp::segment_rows : rows;
      for (int64_t r = top; r < bottom; r++) turn(w.first + r * w.stride + i, i, n);
      if (rows < w.rows && w.rows <= top + esp::segment_rows && last > 0) turn(w.first + rows * w.stride + i, i, last);
      done();
    }
    column(i, n);
  }
}

// Elements side by side, n of them: adds the squares of their errors to the sums of their lanes.
template <class T, class Scale>
ESP_INLINE void add_errors(const esp::QuantizeTarget& t, const Scale& scale, bool divide, int64_t at, int64_t i, int64_t n,
                           SumLanes& squares) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest);
  const T* x = static_cast<const T*>(t.x) + at;
  const f32x16 v = n == 16 ? load(x) : load_n(x, n);
  const f32x16 by = n == 16 ? scale.by(i) : scale.by_n(i, n), zero = n == 16 ? scale.zero(i) : scale.zero_n(i, n);
  const f32x16 c = clamp_position(grid_position(v, by, zero, divide), qmin, qmax);
  const f32x16 y = grid_value(c, n == 16 ? scale.scale(i) : scale.scale_n(i, n), zero);
  const f32x16 e = keep(mask_of(static_cast<uint16_t>((1u << n) - 1)) & (abs(v) <= finite), y - v);
  add_product(squares, e, e);
}

template <class T>
void error_rows_of(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const GridScale& scales, double* sum) {
  const bool divide = t.divide;
  const Constant scale(scales, divide);
  SumLanes all = {zero_f64(), zero_f64()}, squares = all;
  walk_rows(
      segments, count,
      [&](int64_t at, int64_t i, int64_t n) __attribute__((always_inline)) {
        add_errors<T>(t, scale, divide, at, i, n, squares);
      },
      [&]() __attribute__((always_inline)) { add_segment(all, squares); });
  *sum = total(all);
}
// The same for several grids, so that the errors of one are formed while those of another wait.
template <class T, int candidates>
void candidate_errors_of(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const esp::CandidateGrid* grids,
                         double* sums) {
  const bool divide = t.divide;
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), finite = set1(largest);
  SumLanes all[candidates], squares[candidates];
  for (int c = 0; c < candidates; c++) all[c] = squares[c] = {zero_f64(), zero_f64()};
  walk_rows(
      segments, count,
      [&](int64_t at, int64_t, int64_t n) __attribute__((always_inline)) {
        const T* x = static_cast<const T*>(t.x) + at;
        const f32x16 v = n == 16 ? load(x) : load_n(x, n);
        const mask16 counts = mask_of(static_cast<uint16_t>((1u << n) - 1)) & (abs(v) <= finite);
#pragma GCC unroll 4
        for (int c = 0; c < candidates; c++) {
          const f32x16 zero = set1(grids[c].zero);
          const f32x16 position = grid_position(v, set1(divide ? grids[c].scale : grids[c].inverse), zero, divide);
          const f32x16 e = keep(counts, grid_value(clamp_position(position, qmin, qmax), set1(grids[c].scale), zero) - v);
          add_product(squares[c], e, e);
        }
      },
      [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int c = 0; c < candidates; c++) add_segment(all[c], squares[c]);
      });
  for (int c = 0; c < candidates; c++) sums[c] = total(all[c]);
}
template <class T>
void candidate_errors_from(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const esp::CandidateGrid* grids,
                           int64_t candidates, double* sums) {
  constexpr int most = esp::candidates_at_once;
  if (candidates == most) return candidate_errors_of<T, most>(t, segments, count, grids, sums);
  for (int64_t c = 0; c < candidates; c++) candidate_errors_of<T, 1>(t, segments, count, grids + c, sums + c);
}

template <class T>
void error_columns_of(const esp::QuantizeTarget& t, const Window& chunk, int64_t in_last, const GridScale& scales, double* sum) {
  const bool divide = t.divide;
  const PerColumn scale(scales, divide);
  const SumLanes empty = {zero_f64(), zero_f64()};
  SumLanes all = empty, squares = empty;
  walk_columns(
      chunk, in_last,
      [&](int64_t at, int64_t i, int64_t n) __attribute__((always_inline)) {
        add_errors<T>(t, scale, divide, at, i, n, squares);
      },
      [&]() __attribute__((always_inline)) { add_segment(all, squares); },
      [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        store_sum(sum + i, all, n);
        all = empty;
      });
}

void error_rows(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const GridScale& scale, double* sum) {
  return with_dtype(t.dtype, [&](auto element) { return error_rows_of<decltype(element)>(t, segments, count, scale, sum); });
}
void candidate_errors(const esp::QuantizeTarget& t, const Window* segments, int64_t count, const esp::CandidateGrid* grids,
                      int64_t candidates, double* sums) {
  return with_dtype(t.dtype, [&](auto element) { return candidate_errors_from<decltype(element)>(t, segments, count, grids, candidates, sums); });
}
void error_columns(const esp::QuantizeTarget& t, const Window& chunk, int64_t in_last, const GridScale& scale, double* sum) {
  return with_dtype(t.dtype, [&](auto element) { return error_columns_of<decltype(element)>(t, chunk, in_last, scale, sum); });
}

// Elements side by side of x and grad_y, n of them: adds what they give to the sums of their lanes, writes grad_x.
template <class T, class Scale>
ESP_INLINE void add_gradients(const esp::ScaleGradientTarget& t, const Scale& scale, bool divide, int64_t at, int64_t i,
                              int64_t n, SumLanes& by_scale, SumLanes& by_zero) {
  const f32x16 qmin = set1(t.qmin), qmax = set1(t.qmax), nought = set1(0.0f);
  const T* x = static_cast<const T*>(t.x) + at;
  const T* grad_y = static_cast<const T*>(t.grad_y) + at;
  const f32x16 g = n == 16 ? load(grad_y) : load_n(grad_y, n);
  const f32x16 xs = n == 16 ? load(x) : load_n(x, n);
  const f32x16 by = n == 16 ? scale.by(i) : scale.by_n(i, n), zero = n == 16 ? scale.zero(i) : scale.zero_n(i, n);
  const f32x16 v = divide ? xs / by : xs * by, rounded = rint(v), position = rounded + zero;
  const mask16 pass = gate_of(position, qmin, qmax);
  const f32x16 clipped = clamp_position(position, qmin, qmax) - zero;
  add_product(by_scale, g, select(pass, rounded - v, clipped));
  add_product(by_zero, g, select(pass, nought, nought - (n == 16 ? scale.scale(i) : scale.scale_n(i, n))));
  if (t.grad_x != nullptr) {
    T* grad_x = static_cast<T*>(t.grad_x) + at;
    if (n == 16) {
      store(grad_x, keep(pass, g));
    } else {
      store_n(grad_x, keep(pass, g), n);
    }
  }
}
template <class T>
void scale_gradient_rows_of(const esp::ScaleGradientTarget& t, const Window* segments, int64_t count, const GridScale& scales,
                            double* scale_sum, double* zero_sum) {
  const bool divide = t.divide;
  const Constant scale(scales, divide);
  const SumLanes empty = {zero_f64(), zero_f64()};
  SumLanes all_by_scale = empty, all_by_zero = empty, by_scale = empty, by_zero = empty;
  walk_rows(
      segments, count,
      [&](int64_t at, int64_t i, int64_t n) __attribute__((always_inline)) {
        add_gradients<T>(t, scale, divide, at, i, n, by_scale, by_zero);
      },
      [&]() __attribute__((always_inline)) {
        add_segment(all_by_scale, by_scale);
        add_segment(all_by_zero, by_zero);
      });
  *scale_sum = total(all_by_scale);
  *zero_sum = total(all_by_zero);
}

void scale_gradient_rows(const esp::ScaleGradientTarget& t, const Window* segments, int64_t count, const GridScale& scale,
                         double* scale_sum, double* zero_sum) {
  return with_dtype(t.dtype, [&](auto element) { return scale_gradient_rows_of<decltype(element)>(t, segments, count, scale, scale_sum, zero_sum); });
}

template <class T>
void scale_gradient_columns_of(const esp::ScaleGradientTarget& t, const Window& chunk, int64_t in_last,
                               const GridScale& scales, double* scale_sum, double* zero_sum) {
  const bool divide = t.divide;
  const PerColumn scale(scales, divide);
  const SumLanes empty = {zero_f64(), zero_f64()};
  SumLanes all_by_scale = empty, all_by_zero = empty, by_scale = empty, by_zero = empty;
  walk_columns(
      chunk, in_last,
      [&](int64_t at, int64_t i, int64_t n) __attribute__((always_inline)) {
        add_gradients<T>(t, scale, divide, at, i, n, by_scale, by_zero);
      },
      [&]() __attribute__((always_inline)) {
        add_segment(all_by_scale, by_scale);
        add_segment(all_by_zero, by_zero);
      },
      [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        store_sum(scale_sum + i, all_by_scale, n);
        store_sum(zero_sum + i, all_by_zero, n);
        all_by_scale = all_by_zero = empty;
      });
}

void scale_gradient_columns(const esp::ScaleGradientTarget& t, const Window& chunk, int64_t in_last, const GridScale& scale,
                            double* scale_sum, double* zero_sum) {
  return with_dtype(t.dtype, [&](auto element) { return scale_gradient_columns_of<decltype(element)>(t, chunk, in_last, scale, scale_sum, zero_sum); });
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
      put_n(y, i, grid_value(to_float(load_bytes(lanes)), scale.scale_n(i, n), scale.zero_n(i, n)), n);
    };
    int64_t i = 0;
    if constexpr (__is_same(Y, float)) {
      if (t.stream) i = head_of(y, w.columns);
      if (i > 0) part(0, i);
    }
    for (; i + 16 <= w.columns; i += 16) {
      put(y, i, grid_value(to_float(load_bytes(q + i)), scale.scale(i), scale.zero(i)), streaming);
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
const FakeQuantizeKernels ESP_VARIANT(fake_quantize) = {
    observe,       observe_columns,     apply,                  error_rows, candidate_errors,
    error_columns, scale_gradient_rows, scale_gradient_columns, dequantize, backward,
    ::fence};
}  // namespace esp
