// fake_quantize: y, q and gate of a list of tensors, with or without the observer that finds their scales;
// its gradient from bits; dequantize. Formulas in espalier/fake_quantize.h.
//
// Layout: [outer, channels, inner], row-major, bits beside it. A thread has packs of 16 bytes.
// Numerics: F32, half to even, the CPU's operations one by one; minima and maxima as integers of the floats'
// order, so that blocks can raise them in any order. Idea: a channel that lies whole in the registers of a
// warp or a block is read once: range, scale, quantize. Longer channels, and those that are spread over the
// tensor, are read twice: ranges by atomics, a kernel for the scales, then chunks. Bytes an element: x once
// (twice where not fused), y, q and 1/8 of gate once.
#include "fake_quantize.h"

#include "device_limits.h"
#include "fake_quantize_grid.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

using esp::bf16;
using esp::f16;
using esp::Pack;
using esp::Part;
using esp::QuantizeCall;
using esp::QuantizeEntry;
using esp::QuantizeHead;
using esp::QuantizeRange;
using esp::QuantizeState;

constexpr int threads = esp::quantize_threads, warps = esp::quantize_warps, packs = esp::quantize_packs;
constexpr float infinity = __builtin_huge_valf();

template <class T>
constexpr int per_pack = 16 / static_cast<int>(sizeof(T));
// Blocks of a multiprocessor, as many as their registers allow.
constexpr int blocks_of(int list) {
  return list == esp::quantize_rows_block ? 3 : 2;
}

// What every kernel is given.
struct Call {
  const QuantizeHead* head;
  const QuantizeEntry* tensors;
  const Part* parts;
  QuantizeCall* call;
  QuantizeState* states;
  QuantizeRange* ranges;
  esp_cuda_quantize_result* results;
  int64_t count;          // of tensors
  int32_t part_count;     // of this kernel
  uint32_t writers;       // blocks of all kernels that end with finish()
  bool followed = false;  // by another kernel
};

// At the beginning of each kernel but the chunks', which is the last.
__device__ __forceinline__ void wait_in_turn(const Call& call) {
  if (call.followed) esp::let_next_begin();
  esp::wait_for_kernel_before();
}

// The last block of the last kernels: results, and the workspace as it was.
__device__ void finish(const Call& call) {
  if (!esp::is_last_block(&call.call->arrived, call.writers)) return;
  for (int64_t t = threadIdx.x; t < call.count; t += threads) {
    const QuantizeState state = call.states[t];
    const int64_t bad = state.bad == 0 ? -1 : INT64_MAX - static_cast<int64_t>(state.bad);
    call.results[t] = {static_cast<int64_t>(state.nan), static_cast<int64_t>(state.infinite), bad};
    call.states[t] = {0, 0, 0};
  }
}

// ---- grid

__device__ __forceinline__ void report_unusable(QuantizeState* state, int64_t channel, float scale) {
  if (!esp::usable_scale(scale)) atomicMax(&state->bad, static_cast<unsigned long long>(INT64_MAX - channel));
}

// The channels of what follows element `start`, for up to 2^30 elements: 32 bits suffice, however long the
// rows are.
struct Rows {
  uint32_t offset, length;
  const esp::Divisor& by;  // where it lies: seldom looked at, it takes no registers
  int64_t first, channels;
  __device__ Rows(int64_t start, int64_t inner, int64_t channel_count, const esp::Divisor& row_divisor)
      : by(row_divisor), channels(channel_count) {
    constexpr int64_t longest = esp::quantize_longest_row;
    const bool is_short = inner < longest;
    const int64_t row =
        is_short && start <= INT32_MAX ? esp::quotient(static_cast<uint32_t>(start), by) : start / inner;
    const int64_t before = start - row * inner, rest = inner - before;
    length = static_cast<uint32_t>(is_short ? inner : longest);
    offset = static_cast<uint32_t>(is_short ? before : rest < longest ? longest - rest : 0);
    first = row < channels ? row : row % channels;
  }
  // The channel of element start + i, and how many elements the row still has from there on.
  __device__ __forceinline__ int64_t channel(int i, uint32_t* left) const {
    const uint32_t at = offset + static_cast<uint32_t>(i), row = esp::quotient(at, by);
    *left = length - (at - row * length);
    const int64_t channel = first + row;
    if (channel < channels) return channel;
    if (row < channels) return channel - channels;
    return static_cast<uint32_t>(channel) % static_cast<uint32_t>(channels);
  }
  __device__ __forceinline__ int64_t next(int64_t channel) const {
    return channel + 1 == channels ? 0 : channel + 1;
  }
};

// ---- outputs

struct Counts {
  int nan, infinite;
};
__device__ __forceinline__ void count(Counts& counts, float x) {
  const uint32_t magnitude = __float_as_uint(x) & 0x7fffffff;
  if (magnitude >= 0x7f800000) {
    counts.nan += magnitude > 0x7f800000 ? 1 : 0;
    counts.infinite += magnitude > 0x7f800000 ? 0 : 1;
  }
}
// Of elements i .. end-1.
template <class T, class Index>
__device__ __forceinline__ void count(Counts& counts, const T* x, Index i, Index end) {
#pragma unroll 1
  for (; i < end; i++) count(counts, esp::to_float(x[i]));
}
__device__ __forceinline__ void flush(QuantizeState* state, const Counts& counts) {
  if (counts.nan != 0) atomicAdd(&state->nan, static_cast<unsigned long long>(counts.nan));
  if (counts.infinite != 0) atomicAdd(&state->infinite, static_cast<unsigned long long>(counts.infinite));
}

template <class Y, int n>
__device__ __forceinline__ void store_values(void* y, int i, int end, bool whole, const float (&value)[n]) {
  constexpr int per = per_pack<Y> < n ? per_pack<Y> : n;
  Y* const to = static_cast<Y*>(y);
  ESP_GLOBAL(to);
#pragma unroll
  for (int part = 0; part < n; part += per) {
    Pack<Y, per> pack;
#pragma unroll
    for (int j = 0; j < per; j++) pack.at[j] = esp::from_float<Y>(value[part + j]);
    esp::store_pack(to, i + part, end, whole, pack);
  }
}

// What is written of a tensor from element `first` on, a multiple of 8 where a gate is wanted. Indices count
// from there.
template <class T>
struct Outputs {
  char* y;
  uint8_t* q;
  uint8_t* gate;
  bool wide, whole_y, whole_q;
  __device__ Outputs(const QuantizeEntry& t, int64_t first)
      : y(static_cast<char*>(t.y)),
        q(t.q),
        gate(t.gate),
        wide(sizeof(T) != sizeof(float) && t.y_dtype == ESP_F32) {
    if (y != nullptr) y += first * (wide ? 4 : static_cast<int64_t>(sizeof(T)));
    if (q != nullptr) q += first;
    if (gate != nullptr) gate += first / 8;
    whole_y = esp::is_aligned(y, 16);
    whole_q = esp::is_aligned(q, per_pack<T>);
  }
  // The elements of a pack on the grid, `left` of them on the first of `grids`. Called by whole warps; i is a
  // multiple of 8 in every even lane where a gate is wanted, and past `end` nothing is written.
  template <class NextGrid>
  __device__ __forceinline__ void put(const Rule& rule, const Pack<T, per_pack<T>>& x, int i, int end,
                                      Grid grid, uint32_t left, const NextGrid& next) const {
    constexpr int n = per_pack<T>;
    uint32_t bits = 0;
    if (i < end) {
      float integer[n], value[n];
      const auto quantize = [&](int j) {
        const float position = rintf(scaled(esp::to_float(x.at[j]), grid, rule)) + grid.zero;
        integer[j] = clamped(position, rule);
        if (integer[j] == position) bits |= 1u << j;
        value[j] = (integer[j] - grid.zero) * grid.scale;
      };
      if (left >= n) {
#pragma unroll
        for (int j = 0; j < n; j++) quantize(j);
      } else {
#pragma unroll
        for (int j = 0; j < n; j++) {
          if (static_cast<uint32_t>(j) == left && i + j < end) grid = next(&left);
          quantize(j);
        }
      }
      if (q != nullptr) {
        Pack<uint8_t, n> integers;
#pragma unroll
        for (int j = 0; j < n; j++) integers.at[j] = static_cast<uint8_t>(static_cast<int>(integer[j]));
        ESP_GLOBAL(q);
        esp::store_pack(q, i, end, whole_q, integers);
      }
      if (y != nullptr) {
        if (wide) {
          store_values<float>(y, i, end, whole_y, value);
        } else {
          store_values<T>(y, i, end, whole_y, value);
        }
      }
      if (end - i < n) bits &= (1u << (end - i)) - 1;
    }
    if (gate != nullptr) {
      if (n == 4) bits |= __shfl_down_sync(esp::all_lanes, bits, 1) << 4;
      if (i < end && (n == 8 || esp::lane_index() % 2 == 0)) {
        ESP_GLOBAL(gate);
        gate[i / 8] = static_cast<uint8_t>(bits);
      }
    }
  }
};

// ---- ranges

struct Range {
  float low, high;
};
constexpr Range no_range = {infinity, -infinity};

// Elements i .. end-1, of which some may not be finite: those are counted.
template <class T, class Index>
__device__ __forceinline__ void extend(Range& range, Counts& counts, const T* x, Index i, Index end) {
#pragma unroll 1
  for (; i < end; i++) {
    const float v = esp::to_float(x[i]);
    if (fabsf(v) < infinity) {
      range.low = fminf(range.low, v);
      range.high = fmaxf(range.high, v);
    } else {
      count(counts, v);
    }
  }
}
// Of finite elements, and whether all were: 0, or NaN. Three instructions an element; where it is NaN the
// elements are read again, one by one, and so are those of a pack that is cut.
struct Seen {
  Range range = no_range;
  float finite = 0;
  bool cut = false;
  __device__ __forceinline__ void add(float x) {
    range.low = fminf(range.low, x);
    range.high = fmaxf(range.high, x);
    finite = fmaf(x, 0.0f, finite);
  }
  // Packs at element `at`, `at` + `apart` …
  template <class T, int n, int held, class Index>
  __device__ __forceinline__ void add(const Pack<T, n> (&pack)[held], Index at, Index apart, Index end) {
#pragma unroll
    for (int k = 0; k < held; k++) {
      const Index left = end - (at + k * apart);
      if (left >= n) {
#pragma unroll
        for (int j = 0; j < n; j++) add(esp::to_float(pack[k].at[j]));
      } else {
        cut = cut || left > 0;
      }
    }
  }
  // Of all that was added, n elements at `at`, `at` + `apart` … of x.
  template <int n, class T, class Index>
  __device__ __forceinline__ Range range_of(const T* x, Index at, Index apart, Index end,
                                            Counts& counts) const {
    if (!cut && finite == 0) return range;
    Range again = no_range;
#pragma unroll 1
    for (Index i = at; i < end; i += apart) extend(again, counts, x, i, i + n < end ? i + n : end);
    return again;
  }
};
// Of magnitudes, from the range of the values.
__device__ __forceinline__ Range around_zero(const Range& range) {
  const float most = fmaxf(range.high, -range.low);
  return {-most, most};
}
__device__ __forceinline__ Range joined(const Range& a, const Range& b) {
  return {fminf(a.low, b.low), fmaxf(a.high, b.high)};
}
__device__ __forceinline__ Range over_warp(Range range) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    range = joined(range, {__shfl_xor_sync(esp::all_lanes, range.low, apart),
                           __shfl_xor_sync(esp::all_lanes, range.high, apart)});
  }
  return range;
}

// The order of the floats, as integers; finite ones are above 0.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000) != 0 ? ~bits : bits | 0x80000000;
}
__device__ __forceinline__ float of_key(uint32_t key) {
  return __uint_as_float((key & 0x80000000) != 0 ? key & 0x7fffffff : ~key);
}
__device__ __forceinline__ void raise(QuantizeRange* to, const Range& range) {
  if (!(range.low <= range.high)) return;
  atomicMax(&to->below, ~key_of(range.low));
  atomicMax(&to->above, key_of(range.high));
}

__device__ __forceinline__ bool is_absolute(const esp_quantizer& q) {
  return q.symmetric != 0 && q.observer != ESP_OBSERVER_MOVING_AVERAGE;
}

// The scale of a channel from its range, and the moving average on the way. By one thread a channel.
__device__ Grid set_scale(const esp_quantizer& quantizer, const QuantizeEntry& t, int64_t channel,
                          Range range, QuantizeState* state) {
  if (is_absolute(quantizer)) range = around_zero(range);
  if (quantizer.observer == ESP_OBSERVER_MOVING_AVERAGE) {
    float* const low = t.running + channel;
    float* const high = low + t.channels;
    if (range.low <= range.high) {
      *low = fabsf(*low) < infinity ? *low + quantizer.average * (range.low - *low) : range.low;
      *high = fabsf(*high) < infinity ? *high + quantizer.average * (range.high - *high) : range.high;
    }
    range = {*low, *high};
  }
  int32_t zero;
  const float scale = esp::observed_scale(quantizer, range.low, range.high, &zero);
  report_unusable(state, channel, scale);
  t.scale[channel] = scale;
  if (t.zero_point != nullptr) t.zero_point[channel] = zero;
  return grid_from(scale, t.zero_point == nullptr ? 0.0f : static_cast<float>(zero),
                   quantizer.rounding == ESP_ROUND_DIVIDE);
}

// ---- channels that lie whole in the registers of `team` threads

template <class T, int team, int held>
__device__ __forceinline__ void quantize_row(const Call& call, const QuantizeEntry& t, QuantizeState* state,
                                             int64_t channel) {
  constexpr int n = per_pack<T>;
  ESP_SHARED(Range, ranges, [warps]);
  ESP_SHARED(Grid, grids, [1]);
  const int member = static_cast<int>(threadIdx.x) % team;
  const int64_t first = channel * t.inner;
  const int end = static_cast<int>(t.inner);
  const T* const x = static_cast<const T*>(t.x) + first;
  ESP_GLOBAL(x);
  const bool whole = esp::is_aligned(x, 16);
  Pack<T, n> pack[held];
  esp::load_packs<n>(x, member * n, team * n, end, whole, pack);
  Seen seen;
  seen.add(pack, member * n, team * n, end);
  Counts counts = {0, 0};
  Range range = seen.range_of<n>(x, member * n, team * n, end, counts);
  flush(state, counts);
  range = over_warp(range);
  Grid grid;
  if (team == 32) {
    grid = {};
    if (member == 0) grid = set_scale(call.head->quantizer, t, channel, range, state);
    grid = {__shfl_sync(esp::all_lanes, grid.scale, 0), __shfl_sync(esp::all_lanes, grid.by, 0),
            __shfl_sync(esp::all_lanes, grid.zero, 0)};
  } else {
    if (esp::lane_index() == 0) ranges[esp::warp_index()] = range;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
      for (int warp = 1; warp < warps; warp++) range = joined(range, ranges[warp]);
      grids[0] = set_scale(call.head->quantizer, t, channel, range, state);
    }
    __syncthreads();
    grid = grids[0];
  }
  const Rule rule(call.head->quantizer);
  const Outputs<T> outputs(t, first);
  const auto none = [&](uint32_t*) { return grid; };
#pragma unroll
  for (int k = 0; k < held; k++) {
    if (k * team * n < end) outputs.put(rule, pack[k], (k * team + member) * n, end, grid, ~0u, none);
  }
}

// Blocks that run at once, and each does many parts: a block for each would spend half its time on beginning
// and on counting itself as done.
template <int list, int team, int held>
__global__ void __launch_bounds__(threads, blocks_of(list)) fake_quantize_rows_kernel(Call call) {
  wait_in_turn(call);
  for (esp::Walk<Part> walk(call.parts, call.part_count); !walk.ends();) {
    const Part part = walk.take();
    const QuantizeEntry& t = call.tensors[part.tensor];
    const int64_t channel = static_cast<int64_t>(part.index) * (threads / team) + threadIdx.x / team;
    if (channel >= t.channels) continue;
    QuantizeState* const state = call.states + part.tensor;
    esp::with_dtype(
        t.dtype, [&](auto element) { quantize_row<decltype(element), team, held>(call, t, state, channel); });
  }
  finish(call);
}

// ---- ranges of all other channels

template <class T>
__device__ __forceinline__ Range range_of_piece(const QuantizeEntry& t, int64_t first, int64_t end,
                                                Counts& counts) {
  constexpr int n = per_pack<T>, unrolled = 4;
  constexpr int64_t apart = 32 * n;
  const T* const x = static_cast<const T*>(t.x);
  ESP_GLOBAL(x);
  const bool whole = esp::is_aligned(x + first, 16);
  const int64_t own = first + esp::lane_index() * n;
  Seen seen;
  for (int64_t at = own; at < end; at += apart * unrolled) {
    Pack<T, n> pack[unrolled];
    esp::load_packs<n>(x, at, apart, end, whole, pack);
    seen.add(pack, at, apart, end);
  }
  return over_warp(seen.range_of<n>(x, own, apart, end, counts));
}

__global__ void __launch_bounds__(threads) fake_quantize_ranges_rows_kernel(Call call) {
  ESP_SHARED(Range, ranges, [warps]);
  ESP_SHARED(int64_t, channels, [warps]);
  wait_in_turn(call);
  const Part part = call.parts[blockIdx.x];
  const QuantizeEntry t = call.tensors[part.tensor];
  QuantizeState* const state = call.states + part.tensor;
  const int64_t pieces = (t.inner + esp::quantize_piece - 1) / esp::quantize_piece;
  const int64_t piece = static_cast<int64_t>(part.index) * warps + esp::warp_index(), row = piece / pieces;
  Range range = no_range;
  Counts counts = {0, 0};
  if (row < t.outer * t.channels) {
    const int64_t begin = row * t.inner, first = begin + piece % pieces * esp::quantize_piece;
    const int64_t end =
        begin + t.inner < first + esp::quantize_piece ? begin + t.inner : first + esp::quantize_piece;
    range = esp::with_dtype(
        t.dtype, [&](auto element) { return range_of_piece<decltype(element)>(t, first, end, counts); });
    flush(state, counts);
  }
  if (esp::lane_index() == 0) {
    ranges[esp::warp_index()] = range;
    channels[esp::warp_index()] = row % t.channels;
  }
  __syncthreads();
  // Neighbours of one channel raise its range together.
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < warps; warp++) {
      if (channels[warp] == channels[warp - 1]) {
        range = joined(range, ranges[warp]);
      } else {
        raise(call.ranges + t.ranges + channels[warp - 1], range);
        range = ranges[warp];
      }
    }
    raise(call.ranges + t.ranges + channels[warps - 1], range);
  }
}

template <class T>
__device__ __forceinline__ void ranges_of_columns(const Call& call, const QuantizeEntry& t,
                                                  QuantizeState* state, int32_t index) {
  constexpr int n = per_pack<T>, unrolled = 4;
  const int64_t period = t.channels * t.inner;
  const esp::QuantizeStrips s = esp::quantize_strips(period, t.outer, sizeof(T));
  const int64_t pack_index = index % s.strips * s.width + threadIdx.x % static_cast<unsigned>(s.width);
  const int lane = static_cast<int>(threadIdx.x) / s.width;
  if (lane >= s.lanes || pack_index >= s.packs) return;
  const int64_t column = pack_index * n,
                top = index / s.strips * (s.lanes * esp::quantize_column_rows) + lane;
  const int64_t bottom = top - lane + s.lanes * esp::quantize_column_rows;
  const int64_t rows = bottom < t.outer ? bottom : t.outer;
  const T* const x = static_cast<const T*>(t.x);
  ESP_GLOBAL(x);
  const bool whole = esp::is_aligned(x, 16) && period % n == 0;
  Seen seen[n];
  Counts counts = {0, 0};
  for (int64_t row = top; row < rows; row += s.lanes * unrolled) {
    Pack<T, n> pack[unrolled];
    esp::load_packs<n>(x, row * period + column, s.lanes * period, rows * period, whole, pack);
#pragma unroll
    for (int k = 0; k < unrolled; k++) {
      if (row + k * s.lanes < rows) {
#pragma unroll
        for (int j = 0; j < n; j++)
          seen[j].add(esp::to_float(pack[k].at[j]));  // beyond the period too, for nothing
      }
    }
  }
#pragma unroll
  for (int j = 0; j < n; j++) {
    if (column + j >= period) break;
    const int64_t at = column + j;
    const Range range =
        seen[j].template range_of<1>(x, top * period + at, s.lanes * period, rows * period, counts);
    raise(call.ranges + t.ranges + (column + j) / t.inner, range);
  }
  flush(state, counts);
}

__global__ void __launch_bounds__(threads, 2) fake_quantize_ranges_columns_kernel(Call call) {
  wait_in_turn(call);
  const Part part = call.parts[blockIdx.x];
  const QuantizeEntry t = call.tensors[part.tensor];
  QuantizeState* const state = call.states + part.tensor;
  esp::with_dtype(t.dtype,
                  [&](auto element) { ranges_of_columns<decltype(element)>(call, t, state, part.index); });
}

__global__ void __launch_bounds__(threads) fake_quantize_scales_kernel(Call call) {
  wait_in_turn(call);
  const Part part = call.parts[blockIdx.x];
  const QuantizeEntry t = call.tensors[part.tensor];
  const int64_t channel = static_cast<int64_t>(part.index) * threads + threadIdx.x;
  if (channel >= t.channels) return;
  QuantizeRange* const found = call.ranges + t.ranges + channel;
  const QuantizeRange range = *found;
  *found = {0, 0};
  set_scale(call.head->quantizer, t, channel,
            range.above == 0 ? no_range : Range{of_key(~range.below), of_key(range.above)},
            call.states + part.tensor);
}

// ---- chunks whose scales are known

template <class T>
__device__ __forceinline__ void quantize_chunk(const Call& call, const QuantizeEntry& t, QuantizeState* state,
                                               int64_t first) {
  constexpr int n = per_pack<T>;
  const Rule rule(call.head->quantizer);
  const bool counting = call.head->quantizer.observer == ESP_OBSERVER_NONE;
  const int end = static_cast<int>(t.n - first < esp::quantize_chunk ? t.n - first : esp::quantize_chunk);
  const T* const x = static_cast<const T*>(t.x) + first;
  ESP_GLOBAL(x);
  const bool whole = esp::is_aligned(x, 16);
  const Rows rows(first, t.inner, t.channels, t.row);
  const Outputs<T> outputs(t, first);
  Counts counts = {0, 0};
  const auto usable_grid = [&](int64_t channel) {
    const Grid grid = grid_at(t.scale, t.zero_point, channel, rule.divide);
    report_unusable(state, channel, grid.scale);
    return grid;
  };
  // Of the row that the thread is in, which most packs do not leave.
  Grid grid = {1, 1, 0};
  uint32_t row_end = 0;
  for (int turn = 0; turn < end; turn += threads * n * packs) {
    Pack<T, n> pack[packs];
    const int own = turn + static_cast<int>(threadIdx.x) * n;
    esp::load_packs<n>(x, own, threads * n, end, whole, pack);
#pragma unroll
    for (int k = 0; k < packs; k++) {
      const int i = own + k * threads * n;
      if (counting && i < end) {
        float finite = 0;
#pragma unroll
        for (int j = 0; j < n; j++) finite = fmaf(esp::to_float(pack[k].at[j]), 0.0f, finite);
        if (finite != 0) count(counts, x, i, i + n < end ? i + n : end);  // NaN
      }
      int64_t channel = 0;
      if (i<end&& static_cast<uint32_t>(i + n)> row_end) {
        uint32_t left;
        channel = rows.channel(i, &left);
        row_end = static_cast<uint32_t>(i) + left;
        grid = usable_grid(channel);
      }
      const auto next = [&](uint32_t* boundary) {
        *boundary += rows.length;
        row_end += rows.length;
        channel = rows.next(channel);
        return grid = usable_grid(channel);
      };
      outputs.put(rule, pack[k], i, end, grid, row_end - static_cast<uint32_t>(i), next);
    }
  }
  if (counting) flush(state, counts);
}

// Launched without parts where no tensor has any, for the results.
__global__ void __launch_bounds__(threads, blocks_of(esp::quantize_chunks))
    fake_quantize_chunks_kernel(Call call) {
  esp::wait_for_kernel_before();
  for (esp::Walk<Part> walk(call.parts, call.part_count); !walk.ends();) {
    const Part part = walk.take();
    const QuantizeEntry& t = call.tensors[part.tensor];
    QuantizeState* const state = call.states + part.tensor;
    const int64_t first = part.index * esp::quantize_chunk;
    esp::with_dtype(t.dtype, [&](auto element) { quantize_chunk<decltype(element)>(call, t, state, first); });
  }
  finish(call);
}

// ---- backward and dequantize

// 8192 elements a block, 4 packs a thread at a time.
template <class T>
__global__ void __launch_bounds__(threads)
    fake_quantize_backward_kernel(const T* grad_y, const uint8_t* gate, T* grad_x, int64_t n) {
  constexpr int per = per_pack<T>;
  const int64_t first = blockIdx.x * esp::quantize_chunk;
  const int end = static_cast<int>(n - first < esp::quantize_chunk ? n - first : esp::quantize_chunk);
  grad_y += first;
  gate += first / 8;
  grad_x += first;
  const bool whole_in = esp::is_aligned(grad_y, 16), whole_out = esp::is_aligned(grad_x, 16);
  for (int turn = static_cast<int>(threadIdx.x) * per; turn < end; turn += threads * per * packs) {
    Pack<T, per> pack[packs];
    uint32_t bits[packs];
    esp::load_packs<per>(grad_y, turn, threads * per, end, whole_in, pack);
#pragma unroll
    for (int k = 0; k < packs; k++) {
      const int i = turn + k * threads * per;
      bits[k] = i < end ? gate[i / 8] : 0;
    }
#pragma unroll
    for (int k = 0; k < packs; k++) {
#pragma unroll
      for (int j = 0; j < per; j++) {
        if ((bits[k] >> (turn % 8 + j) & 1) == 0) pack[k].at[j] = T{};
      }
      esp::store_pack(grad_x, turn + k * threads * per, end, whole_out, pack[k]);
    }
  }
}

template <class Y>
__global__ void __launch_bounds__(threads) dequantize_kernel(esp_dequantized t, esp::Divisor row, int64_t n) {
  constexpr int per = per_pack<Y>;
  const int64_t first = blockIdx.x * esp::quantize_chunk;
  const int end = static_cast<int>(n - first < esp::quantize_chunk ? n - first : esp::quantize_chunk);
  const uint8_t* const from = t.q + first;
  Y* const y = static_cast<Y*>(t.y) + first;
  const bool whole_q = esp::is_aligned(from, per), whole_y = esp::is_aligned(y, 16);
  const Rows rows(first, t.inner, t.channels, row);
  for (int i = static_cast<int>(threadIdx.x) * per; i < end; i += threads * per) {
    const Pack<uint8_t, per> q = esp::load_pack<per>(from, i, end, whole_q);
    uint32_t left;
    int64_t channel = rows.channel(i, &left);
    Grid grid = grid_at(t.scale, t.zero_point, channel, true);
    float value[per];
#pragma unroll
    for (int j = 0; j < per; j++) {
      if (static_cast<uint32_t>(j) == left && i + j < end) {
        left += rows.length;
        channel = rows.next(channel);
        grid = grid_at(t.scale, t.zero_point, channel, true);
      }
      const int integer = t.is_signed != 0 ? static_cast<int8_t>(q.at[j]) : q.at[j];
      value[j] = (static_cast<float>(integer) - grid.zero) * grid.scale;
    }
    store_values<Y>(y, i, end, whole_y, value);
  }
}

// Whether the kernel of a list ends with finish(); the others prepare for it.
constexpr bool finishes(int list) {
  return list <= esp::quantize_rows_long || list == esp::quantize_chunks;
}

int64_t chunks_of(int64_t n) {
  return (n + esp::quantize_chunk - 1) / esp::quantize_chunk;
}

template <class T>
esp_status launch_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n, void* stream) {
  return esp::launch("fake_quantize_backward", fake_quantize_backward_kernel<T>, chunks_of(n), threads,
                     stream, static_cast<const T*>(grad_y), gate, static_cast<T*>(grad_x), n);
}

}  // namespace

esp_status esp_cuda_fake_quantize(const esp_cuda_plan* plan, const void* table, void* workspace,
                                  esp_cuda_quantize_result* results, void* stream) {
  if (plan == nullptr || table == nullptr || workspace == nullptr ||
      (results == nullptr && plan->operation[esp::quantize_tensors] > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: plan, table, workspace or results is NULL");
  }
  const int64_t* const parts = plan->operation;
  const int64_t count = parts[esp::quantize_tensors];
  Call call;
  call.head = static_cast<const QuantizeHead*>(table);
  call.tensors = reinterpret_cast<const QuantizeEntry*>(call.head + 1);
  call.parts = reinterpret_cast<const Part*>(call.tensors + count);
  call.call = static_cast<QuantizeCall*>(workspace);
  call.states = reinterpret_cast<QuantizeState*>(call.call + 1);
  call.ranges = reinterpret_cast<QuantizeRange*>(call.states + count);
  call.results = results;
  call.count = count;
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;
  const auto blocks = [&](int list) {
    const int64_t together = int64_t{limits.multiprocessors} * blocks_of(list);
    return finishes(list) && parts[list] > together ? together : parts[list];
  };
  int64_t writers = 0;
  for (int list = 0; list < esp::quantize_lists; list++) writers += finishes(list) ? blocks(list) : 0;
  call.writers = static_cast<uint32_t>(writers > 0 ? writers : 1);
  constexpr struct {
    const char* name;
    void (*kernel)(Call);
  } kernels[] = {
      {"fake_quantize of short rows", fake_quantize_rows_kernel<esp::quantize_rows_warp, 32, packs>},
      {"fake_quantize of rows", fake_quantize_rows_kernel<esp::quantize_rows_block, threads, packs>},
      {"fake_quantize of long rows",
       fake_quantize_rows_kernel<esp::quantize_rows_long, threads, esp::quantize_long_packs>},
      {"fake_quantize ranges of rows", fake_quantize_ranges_rows_kernel},
      {"fake_quantize ranges of columns", fake_quantize_ranges_columns_kernel},
      {"fake_quantize scales", fake_quantize_scales_kernel},
  };
  static_assert(sizeof kernels / sizeof kernels[0] == esp::quantize_chunks, "chunks are last");
  const int64_t chunks = writers > 0 ? blocks(esp::quantize_chunks) : 1;
  int last = esp::quantize_chunks;
  while (chunks == 0 && parts[last] == 0) last--;
  esp::Kernels launches(limits, stream);
  for (int list = 0; list < esp::quantize_chunks; list++) {
    call.part_count = static_cast<int32_t>(parts[list]);
    call.followed = list < last;
    if (parts[list] > 0) {
      if (esp_status status =
              launches.launch(kernels[list].name, kernels[list].kernel, blocks(list), threads, call))
        return status;
    }
    call.parts += parts[list];
  }
  if (chunks == 0) return ESP_OK;
  call.part_count = static_cast<int32_t>(parts[esp::quantize_chunks]);
  return launches.launch("fake_quantize", fake_quantize_chunks_kernel, chunks, threads, call);
}

esp_status esp::launch_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x,
                                              int64_t n, esp_dtype dtype, void* stream) {
  if (dtype == ESP_BF16) return launch_backward<bf16>(grad_y, gate, grad_x, n, stream);
  if (dtype == ESP_F16) return launch_backward<f16>(grad_y, gate, grad_x, n, stream);
  return launch_backward<float>(grad_y, gate, grad_x, n, stream);
}

esp_status esp::launch_dequantize(const esp_dequantized& tensor, int64_t n, void* stream) {
  const auto kernel = tensor.dtype == ESP_BF16  ? dequantize_kernel<bf16>
                      : tensor.dtype == ESP_F16 ? dequantize_kernel<f16>
                                                : dequantize_kernel<float>;
  return launch("dequantize", kernel, chunks_of(n), threads, stream, tensor,
                quantize_row_divisor(tensor.inner), n);
}
