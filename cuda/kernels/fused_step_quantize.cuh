// What follows the update of a fused optimizer step: absmax of rows, scales, working copy and gate of the
// weights of a piece.
#pragma once
#include "fused_step_kernel.h"
#include "fused_step_update.cuh"

namespace {

using esp::scale_of;

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
                                              const Rows& rows, const Scales& scales, Kept& kept) {
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
                                              const Rows& rows, Kept& kept, const int* slots,
                                              StepState* state) {
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

}  // namespace
