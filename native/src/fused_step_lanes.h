// The kernels of a fused optimizer step: an operation's update of a range of one tensor, then absmax, scale,
// working copy and gate of what it wrote.
//
// An operation gives a Rule:
//   Tensor, Coefficients        its own, see fused_step_kernel.h
//   Update<Source, kind>        made from (tensor, coefficients) for a gradient of Source; its
//                               lanes<whole>(i, n) updates n <= 16 elements from i on, i a multiple of 16
//                               (all 16 where whole), and returns the bits of their magnitudes
//   span<Source, Also>(tensor, c)   update_span of the kind that the tensor needs
// A Source is Gradient<T> or NoisyGradient<T>, in whose hands mask, gate, clip factor and noise are.
//
// Layout: rows x cols, row-major, bits beside them. Absmax is an integer maximum over the bits of |w|, which
// infinity and NaN win. The update goes to memory once, and what follows it finds the row in the first cache.
// Bulk: 16 elements a turn; tail: the same on zero-filled lanes. Rows that are no multiple of 16 are updated
// several at a time as one flat piece, so that only absmax and working copy see odd starts.
#pragma once
#include "fake_quantize_lanes.h"
#include "fused_step_kernel.h"
#include "simd/normal32.h"
#include "simd/simd.h"

namespace {

constexpr int64_t block = 4096;  // elements: all that a block reads and writes fits the nearest caches

ESP_INLINE int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}
ESP_INLINE int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// ---- update

template <bool whole>
ESP_INLINE uint16_t bits_at(const uint8_t* field, int64_t i, int64_t n) {
  if (field == nullptr) return 0xffff;
  return whole ? load_bits(field, i) : load_bits_n(field, i, n);
}

template <bool whole, class T>
ESP_INLINE f32x16 load_lanes(const T* p, int64_t n) {
  return whole ? load(p) : load_n(p, n);
}
template <bool whole>
ESP_INLINE void store_lanes(float* p, f32x16 v, int64_t n) {
  if (whole) {
    store(p, v);
  } else {
    store_n(p, v, n);
  }
}

ESP_INLINE i32x16 magnitude_bits(f32x16 w) {
  return bits_of(w) & set1(0x7fffffff);
}

// mask * gate * gradient * factor.
template <class T>
struct Gradient {
  const T* values;
  const uint8_t* mask;
  const uint8_t* gate;
  f32x16 factor;

  template <class Tensor, class Coefficients>
  Gradient(const Tensor& tensor, const Coefficients& c)
      : values(static_cast<const T*>(tensor.gradient)),
        mask(tensor.mask),
        gate(tensor.gate),
        factor(set1(c.factor)) {}

  // Also which weights are kept. Elements come in order.
  template <bool whole>
  __attribute__((always_inline)) f32x16 lanes(int64_t i, int64_t n, mask16* kept) const {
    prefetch(values + i);
    *kept = mask_of(0xffff);
    const f32x16 gradient = load_lanes<whole>(values + i, n);
    if (mask == nullptr && gate == nullptr) return gradient * factor;
    *kept = mask_of(bits_at<whole>(mask, i, n));
    return keep(*kept & mask_of(bits_at<whole>(gate, i, n)), gradient) * factor;
  }
};

// The same with noise. Numbers are drawn 32 at a time, which takes a third of the time of 16 twice, and wait
// on the stack for their turn.
template <class T>
struct NoisyGradient {
  Gradient<T> gradient;
  esp::StepNoise noise;
  f32x16 divisor;
  int64_t drawn;  // up to this element
  static constexpr int64_t normals = 32;
  float z[normals];

  template <class Tensor, class Coefficients>
  NoisyGradient(const Tensor& tensor, const Coefficients& c)
      : gradient(tensor, c), noise(c.noise), divisor(set1(c.noise.divisor)), drawn(0) {}

  template <bool whole>
  __attribute__((always_inline)) f32x16 lanes(int64_t i, int64_t n, mask16* kept) {
    if (i >= drawn) {
      for (int64_t k = 0; k < normals; k += 32) {
        normal32(noise.key, noise.counter + static_cast<uint64_t>((i + k) / 2), noise.sigma, z + k);
      }
      drawn = i + normals;
    }
    const f32x16 sum = gradient.template lanes<whole>(i, n, kept);
    const uint16_t there = whole ? 0xffff : static_cast<uint16_t>((1u << n) - 1);
    const mask16 pass = *kept & mask_of(bits_at<whole>(gradient.gate, i, n) & there);
    return keep(pass, (sum + load(z + (i + normals - drawn))) / divisor);
  }
};

template <class Rule>
using TensorOf = typename Rule::Tensor;
template <class Rule>
using CoefficientsOf = typename Rule::Coefficients;
template <class Rule, class Also>
using UpdateSpan = i32x16 (*)(const TensorOf<Rule>&, const CoefficientsOf<Rule>&, int64_t, int64_t,
                              const Also&);

// Updates elements start .. start + n, start a multiple of 16, and returns the bits of their absmax, in 16
// lanes. also(i) runs with each whole 16 of them, i elements after the start: its arithmetic is free while
// the update waits for memory.
template <class Rule, class Update, class Also>
i32x16 update_span(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, int64_t start, int64_t n,
                   const Also& given) {
  Update update(tensor, c);  // out of reach of its stores
  const Also also = given;
  i32x16 largest = set1(0);
  const int64_t bulk = start + (n & ~int64_t{15}), end = start + n;
  for (int64_t i = start; i < bulk; i += 16) {
    largest = max(largest, update.template lanes<true>(i, 16));
    also(i - start);
  }
  if (bulk < end) largest = max(largest, update.template lanes<false>(bulk, end - bulk));
  const i32x16 result = largest;  // a copy: what is returned may lie in memory all along
  return result;
}

struct Nothing {
  static constexpr bool nothing = true;
  void operator()(int64_t) const {}
};

// With noise nothing runs beside an update: numbers take longer than memory.
template <class Rule, class Also, class T>
UpdateSpan<Rule, Also> update_of(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c) {
  if constexpr (Also::nothing) {
    if (c.noise.sigma != 0) return Rule::template span<NoisyGradient<T>, Also>(tensor, c);
  }
  return Rule::template span<Gradient<T>, Also>(tensor, c);
}

template <class Rule, class Also = Nothing>
UpdateSpan<Rule, Also> update_for(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c) {
  return with_dtype(tensor.gradient_dtype,
                    [&](auto element) { return update_of<Rule, Also, decltype(element)>(tensor, c); });
}

// ---- absmax

i32x16 absmax_lanes(const float* w, int64_t n) {
  i32x16 largest = set1(0);
  const int64_t bulk = n & ~int64_t{15};
  for (int64_t i = 0; i < bulk; i += 16) largest = max(largest, magnitude_bits(load(w + i)));
  if (bulk < n) largest = max(largest, magnitude_bits(load_n(w + bulk, n - bulk)));
  return largest;
}

// Other threads raise the same slot: the result does not depend on the order.
void raise(float* slot, int32_t absmax) {
  typedef int32_t __attribute__((may_alias)) bits;
  bits* word = reinterpret_cast<bits*>(slot);
  int32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (before < absmax &&
         !__atomic_compare_exchange_n(word, &before, absmax, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

template <class Tensor>
void raise_rows(const Tensor& tensor, int64_t start, int64_t n) {
  const int64_t cols = esp::row_length(tensor);
  for (int64_t i = start; i < start + n;) {
    const int64_t row = i / cols, end = lesser(start + n, (row + 1) * cols);
    raise(tensor.scale + row, reduce_max(absmax_lanes(tensor.weight + i, end - i)));
    i = end;
  }
}

template <class Tensor>
void raise_columns(const Tensor& tensor, int64_t start, int64_t n) {
  constexpr int64_t panel = 1024;
  int32_t largest[panel];
  for (int64_t first = 0; first < tensor.cols; first += panel) {
    const int64_t width = lesser(panel, tensor.cols - first), bulk = width & ~int64_t{15};
    for (int64_t j = 0; j < width; j++) largest[j] = 0;
    for (int64_t i = start; i < start + n; i += tensor.cols) {
      const float* w = tensor.weight + i + first;
      for (int64_t j = 0; j < bulk; j += 16) {
        store(largest + j, max(load(largest + j), magnitude_bits(load(w + j))));
      }
      if (bulk < width) {
        const int64_t lanes = width - bulk;
        const i32x16 last = magnitude_bits(load_n(w + bulk, lanes));
        store_n(largest + bulk, max(load_n(largest + bulk, lanes), last), lanes);
      }
    }
    for (int64_t j = 0; j < width; j++) raise(tensor.scale + first + j, largest[j]);
  }
}

// ---- working copy and gate

// The training grid: integers -127 .. 127, zero point 0.
ESP_INLINE GridLanes grid_of(f32x16 scale) {
  return {scale, set1(1.0f) / scale, set1(0.0f)};
}
ESP_INLINE GridLanes grid_of(float scale) {
  return {set1(scale), set1(1.0f / scale), set1(0.0f)};
}

ESP_INLINE f32x16 to_grid(f32x16 x, const GridLanes& grid, mask16* pass) {
  const f32x16 low = set1(-127.0f), high = set1(127.0f), position = grid_position(x, grid, false);
  *pass = gate_of(position, low, high);
  return clamp_position(position, low, high);
}

struct NoCopy {};

ESP_INLINE void put(float* p, f32x16 v, bool streaming) {
  if (streaming) {
    stream(p, v);
  } else {
    store(p, v);
  }
}
template <class Half>
ESP_INLINE void put(Half* p, f32x16 v, bool) {
  store(p, v);
}

template <class Float>
ESP_INLINE void write(Float* copy, int64_t i, f32x16 q, const GridLanes& grid, bool streaming) {
  put(copy + i, grid_value(q, grid), streaming);
}
ESP_INLINE void write(int8_t* copy, int64_t i, f32x16 q, const GridLanes&, bool) {
  store_bytes(copy + i, to_int(q));
}
ESP_INLINE void write(NoCopy*, int64_t, f32x16, const GridLanes&, bool) {}

template <class Float>
ESP_INLINE void write_n(Float* copy, int64_t i, f32x16 q, const GridLanes& grid, int64_t n) {
  store_n(copy + i, grid_value(q, grid), n);
}
ESP_INLINE void write_n(int8_t* copy, int64_t i, f32x16 q, const GridLanes&, int64_t n) {
  int8_t lanes[16];
  store_bytes(lanes, to_int(q));
  __builtin_memcpy(copy + i, lanes, static_cast<size_t>(n));
}
ESP_INLINE void write_n(NoCopy*, int64_t, f32x16, const GridLanes&, int64_t) {}

// A row of whole vectors that is quantized while the next one is updated.
template <class Copy>
struct QuantizeRow {
  const float* weight;
  Copy* copy;
  uint8_t* gate;
  int64_t start;
  GridLanes grid;
  bool streaming;
  static constexpr bool nothing = false;

  __attribute__((always_inline)) void operator()(int64_t i) const {
    mask16 pass;
    const f32x16 q = to_grid(load(weight + start + i), grid, &pass);
    write(copy, start + i, q, grid, streaming);
    if (gate != nullptr) store_bits(gate, start + i, bits_of(pass));
  }
};

// Piece after piece of one range, in order: the gate's bits are gathered, because a row may start anywhere in
// a byte.
template <class Tensor, class Copy>
class Quantize {
 public:
  Quantize(const Tensor& tensor, int64_t start, bool streaming)
      : tensor_(tensor),
        copy_(static_cast<Copy*>(tensor.working_copy)),
        streaming_(streaming),
        gate_byte_(start / 8),
        bits_(0),
        pending_(0) {}

  // Elements start .. start + n, all of one scale.
  void row(int64_t start, int64_t n, float scale) {
    const GridLanes grid = grid_of(scale);
    piece(start, n, [&](int64_t, int64_t) { return grid; });
  }

  // Elements start .. start + n, scales[i] for the i-th of them.
  void columns(int64_t start, int64_t n, const float* scales) {
    piece(start, n, [&](int64_t i, int64_t lanes) {
      return grid_of(lanes == 16 ? load(scales + i) : load_n(scales + i, lanes));
    });
  }

  // Elements start .. start + n, wherever rows begin in them.
  void rows(int64_t start, int64_t n) {
    const int64_t cols = esp::row_length(tensor_);
    for (int64_t i = start; i < start + n;) {
      const int64_t number = i / cols, end = lesser(start + n, (number + 1) * cols);
      if (tensor_.channel == ESP_CHANNEL_COLUMN) {
        columns(i, end - i, tensor_.scale + (i - number * cols));
      } else {
        row(i, end - i, tensor_.scale[number]);
      }
      i = end;
    }
  }

  // After the last piece: bits that fill no byte, which happens only at the end of the tensor.
  void finish() {
    if (pending_ > 0) tensor_.gate[gate_byte_] = static_cast<uint8_t>(bits_);
  }

 private:
  template <class LanesOf>
  __attribute__((always_inline)) void piece(int64_t start, int64_t n, LanesOf lanes_of) {
    const float* w = tensor_.weight + start;
    const int64_t bulk = n & ~int64_t{15};
    for (int64_t i = 0; i < bulk; i += 16) {
      const GridLanes grid = lanes_of(i, 16);
      mask16 pass;
      const f32x16 q = to_grid(load(w + i), grid, &pass);
      write(copy_, start + i, q, grid, streaming_);
      if (tensor_.gate != nullptr) write_gate(bits_of(pass), 16);
    }
    if (bulk < n) {
      const int64_t lanes = n - bulk;
      const GridLanes grid = lanes_of(bulk, lanes);
      mask16 pass;
      const f32x16 q = to_grid(load_n(w + bulk, lanes), grid, &pass);
      write_n(copy_, start + bulk, q, grid, lanes);
      if (tensor_.gate != nullptr) write_gate(bits_of(pass), static_cast<int>(lanes));
    }
  }

  __attribute__((always_inline)) void write_gate(uint32_t pass, int n) {
    if (pending_ == 0 && n == 16) {
      const uint16_t whole = static_cast<uint16_t>(pass);
      __builtin_memcpy(tensor_.gate + gate_byte_, &whole, 2);
      gate_byte_ += 2;
      return;
    }
    bits_ |= (pass & ((1u << n) - 1)) << pending_;
    pending_ += n;
    for (; pending_ >= 8; pending_ -= 8, bits_ >>= 8)
      tensor_.gate[gate_byte_++] = static_cast<uint8_t>(bits_);
  }

  const Tensor& tensor_;
  Copy* copy_;
  bool streaming_;
  int64_t gate_byte_;  // the next one
  uint32_t bits_;      // its first bits
  int pending_;        // how many
};

// ---- the three kernels

// Rows of whole vectors, each with a scale to be found.
template <class Rule, class Copy>
int64_t step_rows(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, const esp::StepRange& range,
                  bool streaming) {
  const UpdateSpan<Rule, QuantizeRow<Copy>> update = update_for<Rule, QuantizeRow<Copy>>(tensor, c);
  const int64_t cols = esp::row_length(tensor), end = range.start + range.n;
  QuantizeRow<Copy> row = {tensor.weight, static_cast<Copy*>(tensor.working_copy), tensor.gate, 0, {},
                           streaming};
  int64_t non_finite = 0;
  for (int64_t start = range.start; start < end; start += cols) {
    const i32x16 largest = start == range.start ? update_for<Rule>(tensor, c)(tensor, c, start, cols, {})
                                                : update(tensor, c, start, cols, row);
    const float scale = esp::scale_of(reduce_max(largest));
    non_finite += scale != scale;
    tensor.scale[start / cols] = scale;
    row.start = start;
    row.grid = grid_of(scale);
  }
  for (int64_t i = 0; i < cols; i += 16) row(i);
  return non_finite;
}

// Rows that start anywhere, each with a scale to be found: several are updated as one, then finished one by
// one.
template <class Rule, class Copy>
int64_t step_odd_rows(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c,
                      const esp::StepRange& range, bool streaming) {
  const UpdateSpan<Rule, Nothing> update = update_for<Rule>(tensor, c);
  Quantize<TensorOf<Rule>, Copy> quantize(tensor, range.start, streaming);
  const int64_t cols = esp::row_length(tensor), unit = esp::aligned_rows(cols);
  const int64_t several = cols * greater(unit, block / cols / unit * unit), end = range.start + range.n;
  int64_t non_finite = 0;
  for (int64_t i = range.start; i < end; i += several) {
    const int64_t n = lesser(several, end - i);
    update(tensor, c, i, n, {});
    for (int64_t row = i; row < i + n; row += cols) {
      const float scale = esp::scale_of(reduce_max(absmax_lanes(tensor.weight + row, cols)));
      non_finite += scale != scale;
      tensor.scale[row / cols] = scale;
      quantize.row(row, cols, scale);
    }
  }
  quantize.finish();
  return non_finite;
}

// Scales are given.
template <class Rule, class Copy>
void step_given(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, const esp::StepRange& range,
                bool streaming) {
  const UpdateSpan<Rule, Nothing> update = update_for<Rule>(tensor, c);
  Quantize<TensorOf<Rule>, Copy> quantize(tensor, range.start, streaming);
  const int64_t end = range.start + range.n;
  for (int64_t i = range.start; i < end; i += block) {
    const int64_t n = lesser(block, end - i);
    update(tensor, c, i, n, {});
    quantize.rows(i, n);
  }
  quantize.finish();
}

template <class Rule, class Copy>
int64_t step_quantized(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c,
                       const esp::StepRange& range, bool streaming) {
  if (tensor.scale_given) {
    step_given<Rule, Copy>(tensor, c, range, streaming);
    return 0;
  }
  return esp::aligned_rows(esp::row_length(tensor)) == 1 && c.noise.sigma == 0
             ? step_rows<Rule, Copy>(tensor, c, range, streaming)
             : step_odd_rows<Rule, Copy>(tensor, c, range, streaming);
}

// Without scales.
template <class Rule, class Copy>
void step_plain(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, const esp::StepRange& range,
                bool streaming) {
  const UpdateSpan<Rule, Nothing> update = update_for<Rule>(tensor, c);
  Copy* copy = static_cast<Copy*>(tensor.working_copy);
  const int64_t end = range.start + range.n;
  for (int64_t start = range.start; start < end; start += block) {
    const int64_t n = lesser(block, end - start), bulk = start + (n & ~int64_t{15});
    update(tensor, c, start, n, {});
    for (int64_t i = start; i < bulk; i += 16) put(copy + i, load(tensor.weight + i), streaming);
    if (bulk < start + n) {
      const int64_t lanes = start + n - bulk;
      store_n(copy + bulk, load_n(tensor.weight + bulk, lanes), lanes);
    }
  }
}

// use(element) with an element of the working copy's type, NoCopy where there is none, whose value says
// nothing.
template <class Use>
ESP_INLINE auto with_copy_type(int32_t type, const Use& use) {
  switch (type) {
    case ESP_COPY_NONE:
      return use(NoCopy{});
    case ESP_COPY_F32:
      return use(float{});
    case ESP_COPY_BF16:
      return use(bf16{});
    case ESP_COPY_F16:
      return use(f16{});
    default:
      return use(int8_t{});
  }
}

template <class Rule>
int64_t step(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, const esp::StepRange& range,
             bool streaming) {
  const int64_t non_finite = with_copy_type(tensor.working_copy_type, [&](auto element) -> int64_t {
    using Copy = decltype(element);
    if (tensor.scale != nullptr) return step_quantized<Rule, Copy>(tensor, c, range, streaming);
    if constexpr (__is_same(Copy, NoCopy)) {
      update_for<Rule>(tensor, c)(tensor, c, range.start, range.n, {});
    } else if constexpr (!__is_same(Copy, int8_t)) {  // which has scales
      step_plain<Rule, Copy>(tensor, c, range, streaming);
    }
    return 0;
  });
  if (streaming) fence();
  return non_finite;
}

template <class Rule>
void update(const TensorOf<Rule>& tensor, const CoefficientsOf<Rule>& c, const esp::StepRange& range) {
  const UpdateSpan<Rule, Nothing> span = update_for<Rule>(tensor, c);
  if (tensor.channel == ESP_CHANNEL_COLUMN) {
    span(tensor, c, range.start, range.n, {});
    raise_columns(tensor, range.start, range.n);
    return;
  }
  const int64_t end = range.start + range.n;
  for (int64_t i = range.start; i < end; i += block) {
    const int64_t n = lesser(block, end - i);
    span(tensor, c, i, n, {});
    raise_rows(tensor, i, n);
  }
}

template <class Rule>
void quantize(const TensorOf<Rule>& tensor, const esp::StepRange& range, bool streaming) {
  with_copy_type(tensor.working_copy_type, [&](auto element) {
    Quantize<TensorOf<Rule>, decltype(element)> quantize(tensor, range.start, streaming);
    quantize.rows(range.start, range.n);
    quantize.finish();
  });
  if (streaming) fence();
}

template <class Rule>
constexpr esp::StepKernels<TensorOf<Rule>, CoefficientsOf<Rule>> kernels_of = {step<Rule>, update<Rule>,
                                                                               quantize<Rule>};

}  // namespace
