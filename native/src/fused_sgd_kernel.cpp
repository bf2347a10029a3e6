// fused_sgd: update, absmax, scale, working copy and gate of a range of one tensor; formulas in
// espalier/fused_sgd.h.
//
// Layout: rows x cols, row-major, bits beside them. Numerics: one fma a term, as in the header; absmax as an
// integer maximum over the bits of |w|, which infinity and NaN win. Bytes a weight: 12 read, 8 written, and
// the working copy (4 for F32) past the cache: the update goes to memory once, and what follows it finds the
// row in the first cache. Bulk: 16 elements a turn; tail: the same on zero-filled lanes. Rows that are no
// multiple of 16 are updated several at a time as one flat piece, so that only absmax and working copy see
// odd starts.
#include "fused_sgd_kernel.h"

#include "fake_quantize_lanes.h"
#include "simd/simd.h"

namespace {

constexpr int64_t block =
    4096;  // elements: weight, momentum, gradient and copy of a block fit the nearest caches

ESP_INLINE int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}
ESP_INLINE int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// ---- update

enum class Momentum { none, first, running };

template <bool whole>
ESP_INLINE uint16_t bits_at(const uint8_t* field, int64_t i, int64_t n) {
  if (field == nullptr) return 0xffff;
  return whole ? load_bits(field, i) : load_bits_n(field, i, n);
}

// What an update needs, out of reach of its stores.
template <class T>
struct Update {
  const T* gradient;
  float* weight;
  float* momentum;
  const uint8_t* mask;
  const uint8_t* gate;
  f32x16 factor, weight_decay, rate_of_momentum, damped, minus_rate;
  bool decays, nesterov;

  // n <= 16 elements from i on, i a multiple of 16; the bits of their magnitudes.
  template <Momentum kind, bool whole>
  __attribute__((always_inline)) i32x16 lanes(int64_t i, int64_t n) const {
    prefetch(gradient + i);
    prefetch(weight + i);
    const mask16 kept = mask_of(bits_at<whole>(mask, i, n));
    const mask16 pass = kept & mask_of(bits_at<whole>(gate, i, n));
    f32x16 w = whole ? load(weight + i) : load_n(weight + i, n);
    f32x16 d = keep(pass, whole ? load(gradient + i) : load_n(gradient + i, n)) * factor;
    if (decays) d = fma(w, weight_decay, d);
    if (kind != Momentum::none) {
      f32x16 b = d;
      if (kind == Momentum::running) {
        prefetch(momentum + i);
        b = fma(d, damped, (whole ? load(momentum + i) : load_n(momentum + i, n)) * rate_of_momentum);
      }
      d = nesterov ? fma(b, rate_of_momentum, d) : b;
      b = keep(kept, b);
      if (whole) {
        store(momentum + i, b);
      } else {
        store_n(momentum + i, b, n);
      }
    }
    w = keep(kept, fma(d, minus_rate, w));
    if (whole) {
      store(weight + i, w);
    } else {
      store_n(weight + i, w, n);
    }
    return bits_of(w) & set1(0x7fffffff);
  }
};

// Elements start .. start + n, start a multiple of 16; the bits of their absmax, in 16 lanes. also(i) runs
// beside the i-th whole 16 of them: what it computes hides in the time that memory takes.
template <class T, Momentum kind, class Also>
i32x16 update_span(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, int64_t start, int64_t n,
                   const Also& given) {
  const Update<T> update = {static_cast<const T*>(tensor.gradient),
                            tensor.weight,
                            tensor.momentum,
                            tensor.mask,
                            tensor.gate,
                            set1(c.factor),
                            set1(c.weight_decay),
                            set1(c.momentum),
                            set1(c.damped),
                            set1(c.minus_rate),
                            c.weight_decay != 0,
                            c.nesterov};
  const Also also = given;
  i32x16 largest = set1(0);
  const int64_t bulk = start + (n & ~int64_t{15}), end = start + n;
  for (int64_t i = start; i < bulk; i += 16) {
    largest = max(largest, update.template lanes<kind, true>(i, 16));
    also(i - start);
  }
  if (bulk < end) largest = max(largest, update.template lanes<kind, false>(bulk, end - bulk));
  return largest;
}

struct Nothing {
  void operator()(int64_t) const {}
};

template <class Also>
using UpdateSpan = i32x16 (*)(const esp_sgd_tensor&, const esp::SgdCoefficients&, int64_t, int64_t,
                              const Also&);

template <class T, class Also>
UpdateSpan<Also> update_of(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c) {
  if (c.momentum == 0) return update_span<T, Momentum::none, Also>;
  return tensor.first ? update_span<T, Momentum::first, Also> : update_span<T, Momentum::running, Also>;
}

template <class Also = Nothing>
UpdateSpan<Also> update_for(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c) {
  switch (tensor.gradient_dtype) {
    case ESP_BF16:
      return update_of<bf16, Also>(tensor, c);
    case ESP_F16:
      return update_of<f16, Also>(tensor, c);
    default:
      return update_of<float, Also>(tensor, c);
  }
}

// ---- absmax

i32x16 absmax_lanes(const float* w, int64_t n) {
  i32x16 largest = set1(0);
  const i32x16 magnitude = set1(0x7fffffff);
  const int64_t bulk = n & ~int64_t{15};
  for (int64_t i = 0; i < bulk; i += 16) largest = max(largest, bits_of(load(w + i)) & magnitude);
  if (bulk < n) largest = max(largest, bits_of(load_n(w + bulk, n - bulk)) & magnitude);
  return largest;
}

int32_t reduce_max(i32x16 v) {
  int32_t lanes[16];
  store(lanes, v);
  for (int i = 1; i < 16; i++) lanes[0] = lanes[0] > lanes[i] ? lanes[0] : lanes[i];
  return lanes[0];
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

void raise_rows(const esp_sgd_tensor& tensor, int64_t start, int64_t n) {
  const int64_t cols = esp::row_length(tensor);
  for (int64_t i = start; i < start + n;) {
    const int64_t row = i / cols, end = lesser(start + n, (row + 1) * cols);
    raise(tensor.scale + row, reduce_max(absmax_lanes(tensor.weight + i, end - i)));
    i = end;
  }
}

void raise_columns(const esp_sgd_tensor& tensor, int64_t start, int64_t n) {
  constexpr int64_t panel = 1024;
  int32_t largest[panel];
  const i32x16 magnitude = set1(0x7fffffff);
  for (int64_t first = 0; first < tensor.cols; first += panel) {
    const int64_t width = lesser(panel, tensor.cols - first), bulk = width & ~int64_t{15};
    for (int64_t j = 0; j < width; j++) largest[j] = 0;
    for (int64_t i = start; i < start + n; i += tensor.cols) {
      const float* w = tensor.weight + i + first;
      for (int64_t j = 0; j < bulk; j += 16) {
        store(largest + j, max(load(largest + j), bits_of(load(w + j)) & magnitude));
      }
      if (bulk < width) {
        const int64_t lanes = width - bulk;
        const i32x16 last = bits_of(load_n(w + bulk, lanes)) & magnitude;
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

  __attribute__((always_inline)) void operator()(int64_t i) const {
    mask16 pass;
    const f32x16 q = to_grid(load(weight + start + i), grid, &pass);
    write(copy, start + i, q, grid, streaming);
    if (gate != nullptr) store_bits(gate, start + i, bits_of(pass));
  }
};

// Piece after piece of one range, in order: the gate's bits are gathered, because a row may start anywhere in
// a byte.
template <class Copy>
class Quantize {
 public:
  Quantize(const esp_sgd_tensor& tensor, int64_t start, bool streaming)
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

  const esp_sgd_tensor& tensor_;
  Copy* copy_;
  bool streaming_;
  int64_t gate_byte_;  // the next one
  uint32_t bits_;      // its first bits
  int pending_;        // how many
};

// ---- the three kernels

// Rows of whole vectors, each with a scale to be found.
template <class Copy>
int64_t step_rows(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range,
                  bool streaming) {
  const UpdateSpan<QuantizeRow<Copy>> update = update_for<QuantizeRow<Copy>>(tensor, c);
  const int64_t cols = esp::row_length(tensor), end = range.start + range.n;
  QuantizeRow<Copy> row = {tensor.weight, static_cast<Copy*>(tensor.working_copy), tensor.gate, 0, {},
                           streaming};
  int64_t non_finite = 0;
  for (int64_t start = range.start; start < end; start += cols) {
    const i32x16 largest = start == range.start ? update_for(tensor, c)(tensor, c, start, cols, {})
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
template <class Copy>
int64_t step_odd_rows(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range,
                      bool streaming) {
  const UpdateSpan<Nothing> update = update_for(tensor, c);
  Quantize<Copy> quantize(tensor, range.start, streaming);
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

template <class Copy>
void step_given(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range,
                bool streaming) {
  const UpdateSpan<Nothing> update = update_for(tensor, c);
  Quantize<Copy> quantize(tensor, range.start, streaming);
  const int64_t end = range.start + range.n;
  for (int64_t i = range.start; i < end; i += block) {
    const int64_t n = lesser(block, end - i);
    update(tensor, c, i, n, {});
    quantize.rows(i, n);
  }
  quantize.finish();
}

template <class Copy>
int64_t step_quantized(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c,
                       const esp::SgdRange& range, bool streaming) {
  if (tensor.scale_given) {
    step_given<Copy>(tensor, c, range, streaming);
    return 0;
  }
  return esp::aligned_rows(esp::row_length(tensor)) == 1 ? step_rows<Copy>(tensor, c, range, streaming)
                                                         : step_odd_rows<Copy>(tensor, c, range, streaming);
}

template <class Copy>
void step_plain(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range,
                bool streaming) {
  const UpdateSpan<Nothing> update = update_for(tensor, c);
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

int64_t step(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range,
             bool streaming) {
  int64_t non_finite = 0;
  switch (tensor.working_copy_type * 2 + (tensor.scale != nullptr)) {
    case ESP_COPY_NONE * 2:
      update_for(tensor, c)(tensor, c, range.start, range.n, {});
      break;
    case ESP_COPY_NONE * 2 + 1:
      non_finite = step_quantized<NoCopy>(tensor, c, range, streaming);
      break;
    case ESP_COPY_F32 * 2:
      step_plain<float>(tensor, c, range, streaming);
      break;
    case ESP_COPY_F32 * 2 + 1:
      non_finite = step_quantized<float>(tensor, c, range, streaming);
      break;
    case ESP_COPY_BF16 * 2:
      step_plain<bf16>(tensor, c, range, streaming);
      break;
    case ESP_COPY_BF16 * 2 + 1:
      non_finite = step_quantized<bf16>(tensor, c, range, streaming);
      break;
    case ESP_COPY_F16 * 2:
      step_plain<f16>(tensor, c, range, streaming);
      break;
    case ESP_COPY_F16 * 2 + 1:
      non_finite = step_quantized<f16>(tensor, c, range, streaming);
      break;
    default:
      non_finite = step_quantized<int8_t>(tensor, c, range, streaming);
  }
  if (streaming) fence();
  return non_finite;
}

void update(const esp_sgd_tensor& tensor, const esp::SgdCoefficients& c, const esp::SgdRange& range) {
  const UpdateSpan<Nothing> span = update_for(tensor, c);
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

template <class Copy>
void quantize_as(const esp_sgd_tensor& tensor, const esp::SgdRange& range, bool streaming) {
  Quantize<Copy> quantize(tensor, range.start, streaming);
  quantize.rows(range.start, range.n);
  quantize.finish();
}

void quantize(const esp_sgd_tensor& tensor, const esp::SgdRange& range, bool streaming) {
  switch (tensor.working_copy_type) {
    case ESP_COPY_NONE:
      return quantize_as<NoCopy>(tensor, range, streaming);
    case ESP_COPY_F32:
      quantize_as<float>(tensor, range, streaming);
      if (streaming) fence();
      return;
    case ESP_COPY_BF16:
      return quantize_as<bf16>(tensor, range, streaming);
    case ESP_COPY_F16:
      return quantize_as<f16>(tensor, range, streaming);
    default:
      return quantize_as<int8_t>(tensor, range, streaming);
  }
}

}  // namespace

namespace esp {
extern const FusedSgdKernels ESP_VARIANT(fused_sgd);
const FusedSgdKernels ESP_VARIANT(fused_sgd) = {step, update, quantize};
}  // namespace esp
