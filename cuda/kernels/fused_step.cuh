// What the kernels of fused optimizer steps do alike: pieces, norm and skipping, absmax, scales, working copy
// and gate. A Rule is the update of an element:
// - Coefficients: of a step, F32, with `factor`, the clip factor, negative where maximize, and `noise`.
// - History: what the device keeps of a tensor; older(h) is it after a step.
// - Correction: what a kernel of the rule's own finds for a tensor before the update; corrects: has it any.
// - states: floats of state beside a weight.
// - age(...): what of these the elements of a tensor need; reads(age), writes(age): whether state is.
// - move(c, age, keep, descent, w, state): 4 weights and their state, both kept(keep, j, ...); descent(j) is
//   mask * gate * gradient * factor.
// - blocks: of a multiprocessor; registers a thread are 65536 / (384 * blocks).
// - group: packs that are read before the first of them is written. Of each stream blocks * group * 6 KiB
//   are on their way at once; an H200 wants 40 KB a multiprocessor of all streams together.
//
// Layout: rows x cols, row-major, bits beside them. A block has a piece of one tensor: 6144 elements or
// fewer, 4 packs of 4 a thread, or a panel of 384 columns by 32 rows. Absmax is an integer maximum over the
// bits of |w|, which infinity and NaN win and whose order does not matter. Idea: the updated weights of a
// piece stay in registers, so that rows which lie whole in a piece get scale, working copy and gate in the
// same pass. Channels that span pieces raise a slot by an atomic maximum, and a second kernel quantizes.
#pragma once
#include "device_limits.h"
#include "fused_step_kernel.h"
#include "fused_step_table.h"
#include "kernel.cuh"
#include "normal.h"
#include "status.h"

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
// A panel: 96 packs side by side, 4 rows at once, 16 a turn.
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

// ---- update

// Element j of what moves, or 0 where the mask has it pruned.
__device__ __forceinline__ float kept(uint32_t keep, int j, float x) {
  return (keep >> j & 1) != 0 ? x : 0.0f;
}

// 4 elements of a gradient as they lie in memory: of 16 bits in the first two words. Loads of other streams need
// not wait for their conversion.
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

// Read anew: pointers that stay in registers from pack to pack are twelve registers.
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

// Where each pack is aligned and whole: one load after the other, none of which waits for what another brings.
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

// A group of packs from `first` on: read, moved, written, and kept. whole: each is aligned, and inside or outside.
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
  // No pack is cut at its limit where one is not: limits are apart by the packs' own distance, or by whole rows.
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

// ---- scales

// The rows of a flat piece, numbered from that of its first element on: 32 bits suffice, however long they
// are.
struct Rows {
  uint32_t offset, cols;
  esp::Divisor by;
  int64_t first;  // row
  __device__ Rows(const StepEntry& t, int64_t start) : by(t.row) {
    constexpr int64_t longest = esp::step_longest_row;
    const bool is_short = t.cols < longest;
    first = is_short && start <= INT32_MAX ? esp::quotient(static_cast<uint32_t>(start), by) : start / t.cols;
    const int64_t before = start - first * t.cols, rest = t.cols - before;
    cols = static_cast<uint32_t>(is_short ? t.cols : longest);
    offset = static_cast<uint32_t>(is_short ? before : rest < longest ? longest - rest : 0);
  }
  __device__ __forceinline__ uint32_t row(int64_t element) const {
    return esp::quotient(offset + static_cast<uint32_t>(element), by);
  }
  __device__ __forceinline__ uint32_t column(int64_t element) const {
    return offset + static_cast<uint32_t>(element) - row(element) * cols;
  }
};

struct Scales {
  int absmax[esp::step_piece_rows];
  float scale[esp::step_piece_rows], inverse[esp::step_piece_rows];
};

// Raises absmax of each row of a flat piece. Called by whole warps.
__device__ __forceinline__ void raise_rows(const FlatPlace& place, int64_t start, const Rows& rows,
                                           Kept& kept, int* absmax) {
#pragma unroll 1
  for (int k = 0; k < packs; k++) {
    const int64_t i = place.at(k), limit = place.limit(k);
    const Pack<float, 4> w = kept.of(k);
    const int64_t last = i + 3 < limit ? i + 3 : limit - 1;
    const bool empty = i >= limit;
    const uint32_t row = empty ? 0 : rows.row(i - start), end = empty ? 0 : rows.row(last - start);
    const uint32_t common = __shfl_sync(esp::all_lanes, row, 0);
    if (__all_sync(esp::all_lanes, empty || (row == common && end == common))) {
      int largest = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) largest = max(largest, magnitude_bits(w.at[j]));
      largest = esp::warp_max(largest);
      if (esp::lane_index() == 0 && !empty) atomicMax(&absmax[common], largest);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (i + j < limit)
          atomicMax(&absmax[row == end ? row : rows.row(i + j - start)], magnitude_bits(w.at[j]));
      }
    }
  }
}

// ---- working copy and gate

// The training grid: integers -127 .. 127, zero point 0.
__device__ __forceinline__ float grid_position(float w, float inverse) {
  return rintf(w * inverse) + 0.0f;
}

template <class T>
__device__ __forceinline__ void store_floats(void* copy, int64_t i, int64_t limit, bool quads,
                                             const float (&value)[4]) {
  Pack<T, 4> pack;
#pragma unroll
  for (int j = 0; j < 4; j++) pack.at[j] = esp::from_float<T>(value[j]);
  T* const p = static_cast<T*>(copy);
  ESP_GLOBAL(p);
  esp::store_pack(p, i, limit, quads && esp::is_aligned(p, 4 * sizeof(T)), pack);
}
__device__ __forceinline__ void store_copy(const StepEntry& t, int64_t i, int64_t limit, bool quads,
                                           const float (&value)[4]) {
  switch (t.copy_type) {
    case ESP_COPY_F32:
      return store_floats<float>(t.copy, i, limit, quads, value);
    case ESP_COPY_BF16:
      return store_floats<bf16>(t.copy, i, limit, quads, value);
    case ESP_COPY_F16:
      return store_floats<f16>(t.copy, i, limit, quads, value);
    default:
      return;
  }
}

// Quantizes a pack, writes its copy and returns its gate.
__device__ __forceinline__ uint32_t quantize(const StepEntry& t, int64_t i, int64_t limit, bool quads,
                                             const Pack<float, 4>& w, const float (&scale)[4],
                                             const float (&inverse)[4]) {
  uint32_t pass = 0;
  float q[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float position = grid_position(w.at[j], inverse[j]);
    q[j] = fminf(fmaxf(position, -127.0f), 127.0f);  // NaN becomes -127
    if (q[j] == position) pass |= 1u << j;
  }
  if (t.copy_type == ESP_COPY_INT8) {
    Pack<int8_t, 4> pack;
#pragma unroll
    for (int j = 0; j < 4; j++) pack.at[j] = static_cast<int8_t>(q[j]);
    int8_t* const p = static_cast<int8_t*>(t.copy);
    ESP_GLOBAL(p);
    esp::store_pack(p, i, limit, quads && esp::is_aligned(p, 4), pack);
  } else {
    float value[4];
#pragma unroll
    for (int j = 0; j < 4; j++) value[j] = q[j] * scale[j];
    store_copy(t, i, limit, quads, value);
  }
  return pass;
}

// Two lanes join their 4 bits. Called by whole warps; i is a multiple of 8 in every even lane.
__device__ __forceinline__ void store_gate(uint8_t* gate, int64_t i, int64_t limit, uint32_t pass) {
  if (gate == nullptr) return;
  if (limit - i < 4) pass &= i < limit ? (1u << (limit - i)) - 1 : 0;
  pass |= __shfl_down_sync(esp::all_lanes, pass, 1) << 4;
  if (esp::lane_index() % 2 != 0 || i >= limit) return;
  ESP_GLOBAL(gate);
  gate[i / 8] = static_cast<uint8_t>(pass);
}

__device__ __forceinline__ void count_broken(StepState* state, float scale) {
  if (scale != scale) atomicAdd(&state->non_finite_channels, 1ull);
}

// All of a flat piece whose rows' scales and reciprocals are known.
__device__ __forceinline__ void quantize_rows(const StepEntry& t, const FlatPlace& place, int64_t start,
                                              const Rows& rows, const Scales& scales,
                                              Kept& kept) {
#pragma unroll 1
  for (int k = 0; k < packs; k++) {
    const int64_t i = place.at(k), limit = place.limit(k);
    float scale[4], inverse[4];
    uint32_t pass = 0;
    if (i < limit) {
      const uint32_t row = rows.row(i - start), end = rows.row((i + 3 < limit ? i + 3 : limit - 1) - start);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        scale[j] = scales.scale[row];
        inverse[j] = scales.inverse[row];
      }
      if (row != end) {
#pragma unroll
        for (int j = 1; j < 4; j++) {
          if (i + j >= limit) break;
          const uint32_t own = rows.row(i + j - start);
          scale[j] = scales.scale[own];
          inverse[j] = scales.inverse[own];
        }
      }
      pass = quantize(t, i, limit, true, kept.of(k), scale, inverse);
    }
    store_gate(t.gate, i, limit, pass);
  }
}

// All of a flat piece, each element with a scale of its own: given, or from the slots of columns.
__device__ __forceinline__ void quantize_each(const StepEntry& t, const FlatPlace& place, int64_t start,
                                              const Rows& rows, Kept& kept,
                                              const int* slots, StepState* state) {
#pragma unroll 1
  for (int k = 0; k < packs; k++) {
    const int64_t i = place.at(k), limit = place.limit(k);
    float scale[4], inverse[4];
    uint32_t pass = 0;
    if (i < limit) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        scale[j] = 1.0f;
        if (i + j < limit) {
          const int64_t channel =
              t.columns != 0 ? rows.column(i + j - start) : rows.first + rows.row(i + j - start);
          scale[j] = slots == nullptr ? t.scale[channel] : scale_of(slots[channel]);
          if (slots != nullptr && i + j < t.cols) {
            t.scale[channel] = scale[j];
            count_broken(state, scale[j]);
          }
        }
        inverse[j] = 1.0f / scale[j];
      }
      pass = quantize(t, i, limit, true, kept.of(k), scale, inverse);
    }
    store_gate(t.gate, i, limit, pass);
  }
}

// The last block of the last kernel: what the step has come to.
template <class Rule>
__device__ __forceinline__ void finish(StepState* state, bool guarded, bool with_history, int64_t count,
                                       typename Rule::History* history, esp_step_result* result) {
  const bool skipped = guarded && state->guard.skipped != 0;
  if (with_history && !skipped) {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < count; i += threads) history[i] = Rule::older(history[i]);
  }
  if (threadIdx.x != 0) return;
  // The doubles are copied as words: nothing here computes with them.
  auto* const words = reinterpret_cast<unsigned long long*>(result);
  const auto* const guard = reinterpret_cast<const unsigned long long*>(&state->guard);
  words[0] = guarded ? guard[0] : 0x7ff8000000000000ull;
  words[1] = guarded ? guard[1] : 0x3ff0000000000000ull;
  result->non_finite = guarded ? static_cast<int64_t>(state->guard.non_finite) : 0;
  result->non_finite_channels = static_cast<int64_t>(state->non_finite_channels);
  result->skipped = guarded ? state->guard.skipped : 0;
  state->non_finite_channels = 0;
}

template <class Rule>
struct Step {
  const StepEntry* tensors;
  const StepChunk* chunks;
  StepState* state;
  int* slots;
  typename Rule::History* history;
  const typename Rule::Correction* corrections;  // one a tensor; nullptr where the rule has none
  esp_step_result* result;
  int64_t count;
  typename Rule::Coefficients coefficients;
  int32_t chunk_count;
  bool guarded, with_history, last;
};

template <class Rule, bool noisy>
__device__ __forceinline__ void update_panel(const Step<Rule>& step, const StepEntry& t, int32_t index,
                                             const typename Rule::Coefficients& c,
                                             const typename Rule::Age& age, Kept& kept) {
  int largest[4] = {};
#pragma unroll 1
  for (int turn = 0; turn < panel_turns; turn++) {
    update<Rule, noisy>(t, c, age, panel_place(t, index, turn), t.cols % 4 == 0, kept);
#pragma unroll
    for (int k = 0; k < packs; k++) {
#pragma unroll
      for (int j = 0; j < 4; j++) largest[j] = max(largest[j], magnitude_bits(kept.of(k).at[j]));
    }
  }
  const int64_t column = panel_column(t, index);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (column + j < t.cols) atomicMax(&step.slots[t.slot + column + j], largest[j]);
  }
}

// The tensor of a block: read from shared memory where it is needed, behind a barrier, it takes no registers.
__device__ __forceinline__ void load_entry(const StepEntry* from, StepEntry* to) {
  constexpr int words = sizeof(StepEntry) / 4;
  if (threadIdx.x < words)
    reinterpret_cast<uint32_t*>(to)[threadIdx.x] = reinterpret_cast<const uint32_t*>(from)[threadIdx.x];
}

template <class Rule, bool noisy>
__device__ void update_piece(const Step<Rule>& step, const StepChunk& chunk, typename Rule::Coefficients c,
                             const typename Rule::Age& age, const StepEntry& t, Scales& scales, Kept& kept) {
  if (step.guarded) {
    const float factor = step.state->guard.factor;
    c.factor = c.factor < 0 ? -factor : factor;
  }
  if (t.mode == esp::step_spread && t.columns != 0)
    return update_panel<Rule, noisy>(step, t, chunk.index, c, age, kept);
  const int64_t start = chunk.index * t.piece;
  const FlatPlace place = flat_place(t, start, t.piece);
  update<Rule, noisy>(t, c, age, place, true, kept);

  if (t.mode == esp::step_plain) {
#pragma unroll 1
    for (int k = 0; k < packs && t.copy_type != ESP_COPY_NONE; k++)
      store_copy(t, place.at(k), place.limit(k), true, kept.of(k).at);
    return;
  }
  const Rows rows(t, start);
  const int count = t.columns != 0 ? 0 : static_cast<int>(rows.row(place.limit(0) - 1 - start)) + 1;
  if (t.mode == esp::step_given && (t.columns != 0 || count > esp::step_piece_rows)) {
    __syncwarp();  // the old gate has been read
    quantize_each(t, place, start, rows, kept, nullptr, step.state);
    return;
  }
  if (t.mode == esp::step_given) {
    for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
      scales.scale[r] = t.scale[rows.first + r];
      scales.inverse[r] = 1.0f / scales.scale[r];
    }
    __syncthreads();
    quantize_rows(t, place, start, rows, scales, kept);
    return;
  }

  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) scales.absmax[r] = 0;
  __syncthreads();
  raise_rows(place, start, rows, kept, scales.absmax);
  __syncthreads();
  if (t.mode == esp::step_spread) {
    for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
      atomicMax(&step.slots[t.slot + rows.first + r], scales.absmax[r]);
    }
    return;
  }
  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
    const float scale = scale_of(scales.absmax[r]);
    scales.scale[r] = t.scale[rows.first + r] = scale;
    scales.inverse[r] = 1.0f / scale;
    count_broken(step.state, scale);
  }
  __syncthreads();
  quantize_rows(t, place, start, rows, scales, kept);
}

template <class Place>
__device__ __forceinline__ void load_weights(const StepEntry& t, const Place& place, bool quads, Kept& kept) {
  const float* const weight = t.weight;
  ESP_GLOBAL(weight);
  Pack<float, 4> loaded[packs];
#pragma unroll
  for (int k = 0; k < packs; k++)
    loaded[k] = esp::load_pack<4>(weight, place.at(k), place.limit(k), quads && esp::is_aligned(weight, 16));
#pragma unroll
  for (int k = 0; k < packs; k++) kept.of(k) = loaded[k];
}

template <class Rule>
__device__ __forceinline__ void quantize_panel(const Step<Rule>& step, const StepEntry& t, int32_t index,
                                               Kept& kept) {
  const int64_t column = panel_column(t, index);
  const bool quads = t.cols % 4 == 0, first = index < esp::step_panels(t.cols) && threadIdx.x < panel_packs;
  float scale[4], inverse[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    scale[j] = column + j < t.cols ? scale_of(step.slots[t.slot + column + j]) : 1.0f;
    inverse[j] = 1.0f / scale[j];
    if (first && column + j < t.cols) {
      t.scale[column + j] = scale[j];
      count_broken(step.state, scale[j]);
    }
  }
#pragma unroll 1
  for (int turn = 0; turn < panel_turns; turn++) {
    const PanelPlace place = panel_place(t, index, turn);
    load_weights(t, place, quads, kept);
#pragma unroll 1
    for (int k = 0; k < packs; k++) {
      const int64_t i = place.at(k), limit = place.limit(k);
      const uint32_t pass = i < limit ? quantize(t, i, limit, quads, kept.of(k), scale, inverse) : 0;
      store_gate(t.gate, i, limit, pass);
    }
  }
}

// The second pass over tensors whose channels span pieces.
template <class Rule>
__device__ void quantize_piece(const Step<Rule>& step, const StepChunk& chunk, const StepEntry& t,
                               Scales& scales, Kept& kept) {
  if (esp::step_quantizes_panels(t)) return quantize_panel(step, t, chunk.index, kept);
  const int* const slots = step.slots + t.slot;
  const int64_t start = static_cast<int64_t>(chunk.index) * esp::step_piece;
  const FlatPlace place = flat_place(t, start, esp::step_piece);
  load_weights(t, place, true, kept);
  const Rows rows(t, start);
  if (t.columns != 0) return quantize_each(t, place, start, rows, kept, slots, step.state);
  const int count = static_cast<int>(rows.row(place.limit(0) - 1 - start)) + 1;
  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
    const float scale = scale_of(slots[rows.first + r]);
    scales.scale[r] = scale;
    scales.inverse[r] = 1.0f / scale;
    if ((rows.first + r) * t.cols >= start) {  // the row begins here
      t.scale[rows.first + r] = scale;
      count_broken(step.state, scale);
    }
  }
  __syncthreads();
  quantize_rows(t, place, start, rows, scales, kept);
}

// Noise is a matter of arithmetic, which more registers help more than more threads.
template <class Rule, bool noisy>
__global__ void __launch_bounds__(threads, noisy ? 1 : Rule::blocks) update_kernel(Step<Rule> step) {
  ESP_SHARED(Scales, scales, [1]);
  ESP_SHARED(StepEntry, entry, [1]);
  ESP_SHARED(Kept, kept, [1]);
  ESP_SHARED(typename Rule::Age, age, [1]);
  const bool works = static_cast<int>(blockIdx.x) < step.chunk_count;
  const StepChunk chunk = works ? step.chunks[blockIdx.x] : StepChunk{};
  if (works) load_entry(step.tensors + chunk.tensor, entry);
  if (!step.last) esp::let_next_begin();
  esp::wait_for_kernel_before();
  const bool skipped = step.guarded && step.state->guard.skipped != 0;
  if (works && !skipped) {
    if (threadIdx.x == 0) age[0] = Rule::age(step.coefficients, step.history, step.corrections, chunk.tensor);
    __syncthreads();
    update_piece<Rule, noisy>(step, chunk, step.coefficients, age[0], entry[0], scales[0], kept[0]);
  }
  if (step.last && esp::is_last_block(&step.state->arrived, gridDim.x)) {
    finish<Rule>(step.state, step.guarded, step.with_history, step.count, step.history, step.result);
  }
}

template <class Rule>
__global__ void __launch_bounds__(threads, 2) quantize_kernel(Step<Rule> step) {
  ESP_SHARED(Scales, scales, [1]);
  ESP_SHARED(StepEntry, entry, [1]);
  ESP_SHARED(Kept, kept, [1]);
  const StepChunk chunk = step.chunks[blockIdx.x];
  load_entry(step.tensors + chunk.tensor, entry);
  esp::wait_for_kernel_before();
  const bool skipped = step.guarded && step.state->guard.skipped != 0;
  if (!skipped) {
    __syncthreads();
    quantize_piece(step, chunk, entry[0], scales[0], kept[0]);
  }
  if (esp::is_last_block(&step.state->arrived, gridDim.x)) {
    finish<Rule>(step.state, step.guarded, step.with_history, step.count, step.history, step.result);
  }
}

// What a call has when its arguments are checked.
struct StepCall {
  const char* update_name;
  const char* quantize_name;
  const esp_cuda_plan* plan;
  const void* table;
  void* workspace;
  double max_norm;
  int32_t skip_non_finite;
  esp_step_result* result;
  void* stream;
};

inline esp_status check_plan(const char* operation, const esp_cuda_plan& plan, bool guarded,
                             bool with_history) {
  const bool had_norm = plan.operation[esp::step_guarded] != 0,
             had = plan.operation[esp::step_with_history] != 0;
  if (guarded == had_norm && with_history == had) return ESP_OK;
  return esp::fail(ESP_INVALID_ARGUMENT, "%s: the plan was made for options with%s norm and with%s momentum",
                   operation, had_norm ? "" : "out", had ? "" : "out");
}

// A graph would add the same noise at each launch.
inline esp_status check_capture(const char* operation, const esp_step_noise& noise, void* stream) {
  if (noise.sigma == 0) return ESP_OK;
  cudaStreamCaptureStatus status;
  if (esp_status failed =
          esp::check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), operation)) {
    return failed;
  }
  return status == cudaStreamCaptureStatusNone
             ? ESP_OK
             : esp::fail(ESP_UNSUPPORTED,
                         "%s: a step with noise cannot be captured: each launch of the graph would add "
                         "the same noise",
                         operation);
}

// Queues the step. correct(kernels, corrections) queues what fills them.
template <class Rule, class Correct>
esp_status launch_step(const StepCall& call, const typename Rule::Coefficients& coefficients,
                       typename Rule::History* history, Correct&& correct) {
  const int64_t* const operation = call.plan->operation;
  const bool guarded = operation[esp::step_guarded] != 0;
  const int64_t count = operation[esp::step_tensors], first = operation[esp::step_first_chunks],
                second = operation[esp::step_second_chunks], slots = operation[esp::step_slots];
  const auto* const tensors = static_cast<const StepEntry*>(call.table);
  const auto* const chunks = reinterpret_cast<const StepChunk*>(tensors + count);
  auto* const state = static_cast<StepState*>(call.workspace);
  int* const slot = reinterpret_cast<int*>(state + 1);
  auto* const corrections = reinterpret_cast<typename Rule::Correction*>(slot + (slots + 1) / 2 * 2);
  void* const norm_workspace = corrections + (Rule::corrects ? count : 0);
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;

  if (slots > 0) {  // first, because kernels follow kernels only
    if (esp_status status = esp::check(
            cudaMemsetAsync(slot, 0, static_cast<size_t>(slots) * 4, static_cast<cudaStream_t>(call.stream)),
            call.update_name)) {
      return status;
    }
  }
  if (guarded) {
    const esp_cuda_plan norm = {0, 0, {count, operation[esp::step_norm_chunks]}};
    const esp::GuardRule rule = {call.max_norm, call.skip_non_finite, &state->guard};
    if (esp_status status = esp::launch_gradient_norm(norm, chunks + first + second, norm_workspace, nullptr,
                                                      rule, call.stream)) {
      return status;
    }
  }
  esp::Kernels kernels(limits, call.stream, guarded);
  if (esp_status status = correct(kernels, corrections, count)) return status;
  Step<Rule> step = {tensors,      chunks,
                     state,        slot,
                     history,      corrections,
                     call.result,  count,
                     coefficients, static_cast<int32_t>(first),
                     guarded,      operation[esp::step_with_history] != 0,
                     second == 0};
  const int64_t blocks = first > 0 ? first : 1;
  if (esp_status status =
          kernels.launch(call.update_name,
                         coefficients.noise.sigma != 0 ? update_kernel<Rule, true> : update_kernel<Rule, false>,
                         blocks, threads, step)) {
    return status;
  }
  if (second == 0) return ESP_OK;
  step.chunks = chunks + first;
  return kernels.launch(call.quantize_name, quantize_kernel<Rule>, second, threads, step);
}

}  // namespace
