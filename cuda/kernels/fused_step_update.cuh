// The update of a fused optimizer step: where the packs of a thread lie, what is read for them, noise, and
// the new weights, which are written and kept for what follows. A Rule is described in fused_step.cuh.
#pragma once
#include "fused_step_table.h"
#include "kernel.cuh"
#include "normal.h"

namespace {

using esp::bf16;
using esp::f16;
using esp::Pack;
using esp::scale_of;
using esp::StepChunk;
using esp::StepEntry;
using esp::StepState;

constexpr int threads = esp::step_threads, packs = esp::step_packs;

// Where the packs of a thread lie: pack k holds elements at(k) and the 3 after it, as far as they are below
// limit(k).
struct FlatPlace {
  int64_t first, end;
  __device__ __forceinline__ int64_t at(int k) const { return first + k * (threads * 4); }
  __device__ __forceinline__ int64_t limit(int) const { return end; }
};
struct PanelPlace {
  int64_t first, row_end, step, n;
  __device__ __forceinline__ int64_t at(int k) const { return first + k * step; }
  __device__ __forceinline__ int64_t limit(int k) const {
    return row_end + k * step < n ? row_end + k * step : n;
  }
};

__device__ __forceinline__ FlatPlace flat_place(const StepEntry& t, int64_t start, int64_t piece) {
  return {start + threadIdx.x * 4, start + piece < t.n ? start + piece : t.n};
}
// A panel: 64 packs side by side, 4 rows at once, 24 a turn.
constexpr int panel_packs = esp::step_panel_columns / 4, rows_at_once = threads / panel_packs;
constexpr int panel_turns = esp::step_panel_rows / (rows_at_once * packs);
__device__ __forceinline__ int64_t panel_column(const StepEntry& t, int32_t index) {
  return index % esp::step_panels(t.cols) * esp::step_panel_columns + threadIdx.x % panel_packs * 4;
}
__device__ __forceinline__ PanelPlace panel_place(const StepEntry& t, int32_t index, int turn) {
  const int64_t row = index / esp::step_panels(t.cols) * esp::step_panel_rows + turn * rows_at_once * packs +
                      threadIdx.x / panel_packs;
  return {row * t.cols + panel_column(t, index), (row + 1) * t.cols, rows_at_once * t.cols, t.n};
}

// 4 bits of a field from any element on; nothing is read beyond the byte of limit - 1.
__device__ __forceinline__ uint32_t bits_4(const uint8_t* field, int64_t i, int64_t limit) {
  if (field == nullptr || i >= limit) return 0xf;
  const uint8_t* const p = field + i / 8;
  ESP_GLOBAL(p);
  const int shift = static_cast<int>(i & 7);
  uint32_t bits = static_cast<uint32_t>(p[0]) >> shift;
  if (shift > 4 && i + 8 - shift < limit) bits |= static_cast<uint32_t>(p[1]) << (8 - shift);
  return bits & 0xf;
}

__device__ __forceinline__ int magnitude_bits(float w) {
  return __float_as_int(w) & 0x7fffffff;
}

// Element j of what moves, or 0 where the mask has it pruned.
__device__ __forceinline__ float kept(uint32_t keep, int j, float x) {
  return (keep >> j & 1) != 0 ? x : 0.0f;
}

// 4 elements of a gradient as they lie in memory: of 16 bits in the first two words. Loads of other streams
// need not wait for their conversion.
using RawGradient = Pack<uint32_t, 4>;
template <class T>
__device__ __forceinline__ RawGradient load_halves(const T* gradient, int64_t i, int64_t limit) {
  ESP_GLOBAL(gradient);
  const Pack<T, 4> g = esp::load_pack<4>(gradient, i, limit, false);
  return {{static_cast<uint32_t>(g.at[1].bits) << 16 | g.at[0].bits,
           static_cast<uint32_t>(g.at[3].bits) << 16 | g.at[2].bits, 0, 0}};
}
__device__ __forceinline__ RawGradient load_gradient(const StepEntry& t, int64_t i, int64_t limit) {
  if (t.gradient_dtype == ESP_F32) {
    const float* const gradient = static_cast<const float*>(t.gradient);
    ESP_GLOBAL(gradient);
    return esp::bits_as<RawGradient>(esp::load_pack<4>(gradient, i, limit, false));
  }
  return load_halves(static_cast<const bf16*>(t.gradient), i, limit);  // F16 lies alike
}
__device__ __forceinline__ void convert(const RawGradient& g, int32_t dtype, float (&value)[4]) {
  if (dtype == ESP_F32) {
#pragma unroll
    for (int j = 0; j < 4; j++) value[j] = __uint_as_float(g.at[j]);
  } else if (dtype == ESP_BF16) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) esp::to_floats<bf16>(g.at[j / 2], value[j], value[j + 1]);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j += 2) esp::to_floats<f16>(g.at[j / 2], value[j], value[j + 1]);
  }
}

// ---- noise, with the CPU's bits

__device__ __forceinline__ void draw(const esp::StepNoise& noise, uint64_t block, float* first,
                                     float* second) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = esp::noise_stream, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(noise.key), k1 = static_cast<uint32_t>(noise.key >> 32);
#pragma unroll
  for (int round = 0; round < esp::philox_rounds; round++) {
    const uint64_t a = uint64_t{c0} * esp::philox_a, b = uint64_t{c2} * esp::philox_b;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += esp::philox_key_a;
    k1 += esp::philox_key_b;
  }
  esp::normal_pair(1 - esp::fraction(c0, c1), esp::fraction(c2, c3), noise.sigma, first, second);
}

// The numbers of elements i .. i + 3, which lie in two blocks, or three where i is odd.
__device__ __forceinline__ Pack<float, 4> draw_4(const esp::StepNoise& noise, uint64_t first_block,
                                                 int64_t i) {
  Pack<float, 4> z = {};
  const int odd = static_cast<int>(i & 1);
#pragma unroll 1
  for (int b = 0; b < 2 + odd; b++) {
    float first, second;
    draw(noise, first_block + static_cast<uint64_t>(i / 2 + b), &first, &second);
    const int at = 2 * b - odd;
#pragma unroll
    for (int j = 0; j < 4; j++) z.at[j] = j == at ? first : j == at + 1 ? second : z.at[j];
  }
  return z;
}

// ---- update

// The new weights of a piece, in shared memory: each thread looks at its own only. Registers would have to be
// indexed, so all that is done with packs would be there four times.
struct Kept {
  Pack<float, 4> at[packs * threads];
  __device__ __forceinline__ Pack<float, 4>& of(int k) { return at[k * threads + threadIdx.x]; }
};

// What a group of packs reads of memory.
template <int group, int states>
struct Streams {
  Pack<float, 4> w[group], m[group][states];
  RawGradient g[group];
  uint32_t keep[group], pass[group];  // bytes of the masks where all is whole, else 4 bits
};

// Read again from shared memory: held from pack to pack the pointers would take twelve registers.
template <class T>
__device__ __forceinline__ T* anew(T* const& pointer) {
  return *const_cast<T* const volatile*>(&pointer);
}

// The bytes of a field that hold the packs' bits, as they are; 0xff where there is none.
template <int group, class Place>
__device__ __forceinline__ void load_bytes(const uint8_t* field, const Place& place, int first,
                                           uint32_t (&byte)[group]) {
#pragma unroll
  for (int k = 0; k < group; k++) byte[k] = 0xff;
  if (field == nullptr) return;
  ESP_GLOBAL(field);
#pragma unroll
  for (int k = 0; k < group; k++) {
    const int64_t i = place.at(first + k);
    if (i < place.limit(first + k)) byte[k] = field[i / 8];
  }
}

// Where each pack is aligned and whole: all loads are issued before one is waited for.
template <class Rule, bool halves, int group, class Place>
__device__ __forceinline__ void load_whole(const StepEntry& t, bool reads, const Place& place, int first,
                                           Streams<group, Rule::states>& to) {
  const void* const gradient = anew(t.gradient);
  ESP_GLOBAL(gradient);
#pragma unroll
  for (int k = 0; k < group; k++) {
    const int64_t i = place.at(first + k);
    to.g[k] = {};
    if (halves) {
      Pack<uint32_t, 2> pair = {};
      if (i < place.limit(first + k))
        pair = *reinterpret_cast<const Pack<uint32_t, 2>*>(static_cast<const bf16*>(gradient) + i);
      to.g[k] = {{pair.at[0], pair.at[1], 0, 0}};
    } else if (i < place.limit(first + k)) {
      to.g[k] = *reinterpret_cast<const RawGradient*>(static_cast<const float*>(gradient) + i);
    }
  }
  const float* const weight = anew(t.weight);
  ESP_GLOBAL(weight);
#pragma unroll
  for (int k = 0; k < group; k++) {
    const int64_t i = place.at(first + k);
    to.w[k] = {};
    if (i < place.limit(first + k)) to.w[k] = *reinterpret_cast<const Pack<float, 4>*>(weight + i);
  }
#pragma unroll
  for (int s = 0; s < Rule::states; s++) {
    const float* const state = anew(t.state[s]);
#pragma unroll
    for (int k = 0; k < group; k++) {
      const int64_t i = place.at(first + k);
      to.m[k][s] = {};
      if (reads && i < place.limit(first + k)) {
        ESP_GLOBAL(state);
        to.m[k][s] = *reinterpret_cast<const Pack<float, 4>*>(state + i);
      }
    }
  }
  load_bytes(anew(t.mask), place, first, to.keep);
  load_bytes(anew(t.gate), place, first, to.pass);
}

// One pack at any address, or cut at its limit.
template <class Rule>
__device__ __forceinline__ void load_cut(const StepEntry& t, bool reads, int64_t i, int64_t limit,
                                         Streams<1, Rule::states>& to) {
  const float* const weight = t.weight;
  ESP_GLOBAL(weight);
  to.w[0] = esp::load_pack<4>(weight, i, limit, false);
  to.g[0] = load_gradient(t, i, limit);
#pragma unroll
  for (int s = 0; s < Rule::states; s++) {
    const float* const state = t.state[s];
    to.m[0][s] = {};
    if (reads) {
      ESP_GLOBAL(state);
      to.m[0][s] = esp::load_pack<4>(state, i, limit, false);
    }
  }
  to.keep[0] = bits_4(t.mask, i, limit);
  to.pass[0] = bits_4(t.gate, i, limit);
}

template <bool whole>
__device__ __forceinline__ void store_quad(float* p, int64_t i, int64_t limit, const Pack<float, 4>& quad) {
  ESP_GLOBAL(p);
  if (!whole) {
    esp::store_pack(p, i, limit, false, quad);
  } else if (i < limit) {
    esp::store_whole(p + i, quad);
  }
}

// A group of packs from `first` on: read, moved, written, and kept. whole: each is aligned, and inside or
// outside.
template <class Rule, bool noisy, int group, bool whole, class Place>
__device__ __forceinline__ void update_group(const StepEntry& t, const typename Rule::Coefficients& c,
                                             const typename Rule::Age& age, const Place& place, int first,
                                             Kept& kept) {
  constexpr int states = Rule::states;
  Streams<group, states> in;
  if constexpr (whole) {
    if (t.gradient_dtype == ESP_F32) {  // outside, because a wait for all comes where the two ways meet
      load_whole<Rule, false>(t, Rule::reads(age), place, first, in);
    } else {
      load_whole<Rule, true>(t, Rule::reads(age), place, first, in);
    }
  } else {
    load_cut<Rule>(t, Rule::reads(age), place.at(first), place.limit(first), in);
  }
#pragma unroll
  for (int k = 0; k < group; k++) {
    const int64_t i = place.at(first + k), limit = place.limit(first + k);
    Pack<float, 4> z = {};
    if (noisy && i < limit) z = draw_4(c.noise, c.noise.counter + static_cast<uint64_t>(t.noise), i);
    const int half = whole ? static_cast<int>(i & 4) : 0;
    const uint32_t keep = in.keep[k] >> half, pass = keep & in.pass[k] >> half;
    float gradient[4];
    convert(in.g[k], t.gradient_dtype, gradient);
    const auto descent = [&](int j) {
      const bool passes = (pass >> j & 1) != 0;
      const float d = (passes ? gradient[j] : 0.0f) * c.factor;
      if (!noisy) return d;
      return passes && i + j < limit ? (d + z.at[j]) / c.noise.divisor : 0.0f;
    };
    Rule::move(c, age, keep, descent, in.w[k], in.m[k]);
    if (Rule::writes(age)) {
#pragma unroll
      for (int s = 0; s < states; s++) store_quad<whole>(anew(t.state[s]), i, limit, in.m[k][s]);
    }
    store_quad<whole>(anew(t.weight), i, limit, in.w[k]);
    kept.of(first + k) = in.w[k];
  }
}

// The packs of a place, whose new weights come back in `kept`. quads: a pack begins at a multiple of 4
// elements.
template <class Rule, bool noisy, class Place>
__device__ __forceinline__ void update(const StepEntry& t, const typename Rule::Coefficients& c,
                                       const typename Rule::Age& age, const Place& place, bool quads,
                                       Kept& kept) {
  // No pack is cut at its limit where one is not: limits are apart by the packs' own distance, or by whole
  // rows.
  bool whole = quads && (place.limit(0) - place.at(0)) % 4 == 0 && esp::is_aligned(t.weight, 16) &&
               esp::is_aligned(t.gradient, t.gradient_dtype == ESP_F32 ? 16 : 8);
#pragma unroll
  for (int s = 0; s < Rule::states; s++)
    whole = whole && (!Rule::writes(age) || esp::is_aligned(t.state[s], 16));
  if (whole) {
    // A load does not pass a store that may be to its place: so what a group reads is asked for at once.
    constexpr int group = noisy ? 1 : Rule::group;
#pragma unroll 1
    for (int first = 0; first < packs; first += group)
      update_group<Rule, noisy, group, true>(t, c, age, place, first, kept);
  } else {
#pragma unroll 1
    for (int k = 0; k < packs; k++) update_group<Rule, noisy, 1, false>(t, c, age, place, k, kept);
  }
}

}  // namespace
