// Sums over channels in the order of fake_quantize_order.h, by blocks. In rows, 4 threads have a segment's 16
// lanes in registers; in a matrix a lane has a pack of columns and a warp the 16 rows of a segment. A block
// adds its segments up in shared memory, so that memory sees one sum for 8192 elements of rows or 128 of a
// column. A warp adds up what chunks leave.
#pragma once
#include "fake_quantize_sums.h"
#include "kernel.cuh"

namespace {

constexpr int threads = esp::sum_threads, warps = esp::sum_warps, lanes = esp::sum_lanes;
constexpr int n = esp::sum_pack, team = esp::sum_team, strip = esp::sum_strip;
constexpr int unrolled = 4;  // packs of a thread that are on their way together

using esp::Sums;

template <int count>
__device__ __forceinline__ void add(Sums<count>& sums, const Sums<count>& more) {
#pragma unroll
  for (int c = 0; c < count; c++) sums.of[c] += more.of[c];
}
// Adds the sums of the lanes to those of the first of `width` together.
template <int count>
__device__ __forceinline__ void add_lanes(Sums<count>& sums, int width) {
#pragma unroll
  for (int apart = width / 2; apart > 0; apart /= 2) {
    Sums<count> other;
#pragma unroll
    for (int c = 0; c < count; c++) other.of[c] = __shfl_down_sync(esp::all_lanes, sums.of[c], apart, width);
    add(sums, other);
  }
}

// Packs of a thread: where they lie, and how many elements from there on are its own (more than n, or none).
struct Places {
  int64_t at[unrolled];
  int left[unrolled];
};

// ---- rows

// The segment of a thread's team: segment `of_chunk` of chunk `chunk` of all channels.
struct RowSegment {
  int64_t channel, segment;
  __device__ RowSegment(const esp::SumOrder& order, int32_t group, int32_t part) {
    const int thread = static_cast<int>(threadIdx.x), of_chunk = thread / team % group;
    const int64_t chunk = static_cast<int64_t>(part) * esp::sum_slots(group) + thread / team / group;
    channel = chunk / order.chunks;
    segment = (chunk - channel * order.chunks) * esp::chunk_segments + of_chunk;
  }
  __device__ __forceinline__ bool exists(const esp::SumOrder& order) const {
    return channel < order.channels && segment < order.segments;
  }
  // visit(places) for all of its packs.
  template <class Visit>
  __device__ __forceinline__ void each(const esp::SumOrder& order, const Visit& visit) const {
    const int member = static_cast<int>(threadIdx.x) % team * n;  // the thread's first lane
    const esp::Window window = order.segment(channel, segment);
    const int columns = static_cast<int>(window.columns);
    const int turns = static_cast<int>(window.rows) * ((columns + lanes - 1) / lanes);
    int64_t row = window.first;
    int column = 0;
    for (int turn = 0; turn < turns; turn += unrolled) {
      Places places;
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        places.at[k] = row + column + member;
        places.left[k] = turn + k < turns ? columns - column - member : 0;
        column += lanes;
        if (column >= columns) {
          column = 0;
          row += window.stride;
        }
      }
      visit(places);
    }
  }
};

// store(sums of a chunk, its number among those of the channels), from shared(segment of the block, lane):
// half a warp a chunk. After a barrier, by all threads.
template <int count, class Shared, class Store>
__device__ __forceinline__ void add_up_rows(const esp::SumOrder& order, int32_t group, int32_t part,
                                            const Shared& shared, const Store& store) {
  const int slots = esp::sum_slots(group);
  for (int first = esp::warp_index() * 2; first < slots; first += warps * 2) {
    const int slot = first + esp::lane_index() / lanes, lane = esp::lane_index() % lanes;
    Sums<count> total = {};
    for (int s = 0; s < group; s++) add(total, shared(slot * group + s, lane));
    add_lanes(total, lanes);
    const int64_t chunk = static_cast<int64_t>(part) * slots + slot;
    if (lane == 0 && chunk < order.channels * order.chunks) store(total, chunk);
  }
}

// ---- columns of a matrix

// The columns of a lane and the rows of a warp in a chunk.
struct ColumnSegment {
  int64_t chunk, begin, column, first;  // begin: the block's first column
  __device__ ColumnSegment(const esp::SumOrder& order, int32_t part) {
    const int64_t strips = (order.matrix.width + strip - 1) / strip;
    chunk = part / strips;
    begin = (part - chunk * strips) * strip;
    column = begin + esp::lane_index() * n;
    first = chunk * esp::chunk_rows + esp::warp_index() * esp::segment_rows;
  }
  __device__ __forceinline__ bool exists(const esp::SumOrder& order) const {
    return column < order.matrix.width && first < order.height();
  }
  // visit(j, channel of column + j), for columns that there are.
  template <class Visit>
  __device__ __forceinline__ void each_channel(const esp::SumOrder& order, const Visit& visit) const {
    const int64_t within = column % (order.channels * order.inner);
    int64_t channel = within / order.inner, of_channel = within - channel * order.inner;
#pragma unroll
    for (int j = 0; j < n; j++) {
      if (column + j < order.matrix.width) visit(j, channel);
      if (++of_channel == order.inner) {
        of_channel = 0;
        channel = channel + 1 == order.channels ? 0 : channel + 1;
      }
    }
  }
  // visit(places) for all packs of the lane.
  template <class Visit>
  __device__ __forceinline__ void each(const esp::SumOrder& order, const Visit& visit) const {
    const int64_t width = order.matrix.width, stop = exists(order) ? first + esp::segment_rows : first;
    for (int64_t from = first; from < stop; from += unrolled) {
      Places places;
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        const int64_t row = from + k, limit = row < order.matrix.rows    ? width
                                              : row == order.matrix.rows ? order.matrix.rest
                                                                         : 0;
        places.at[k] = row * width + column;
        places.left[k] = column + n <= limit ? n : column < limit ? static_cast<int>(limit - column) : 0;
      }
      visit(places);
    }
  }
  // The sums of the block's thread-th column, from shared(warp, column of the block), to store(sums,
  // partial). After a barrier, by all threads.
  template <int count, class Shared, class Store>
  __device__ __forceinline__ void add_up(const esp::SumOrder& order, const Shared& shared,
                                         const Store& store) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= strip || begin + thread >= order.matrix.width) return;
    Sums<count> total = {};
#pragma unroll
    for (int warp = 0; warp < warps; warp++) add(total, shared(warp, thread));
    store(total, chunk * order.matrix.width + begin + thread);
  }
};

// ---- channels

// The channel's sums, in lane 0, from what its chunks left: partial(i). By a whole warp.
template <int count, class Partial>
__device__ __forceinline__ Sums<count> channel_sums(const esp::SumOrder& order, int64_t channel,
                                                    const Partial& partial) {
  constexpr int held = esp::partial_lanes / 32;
  const int64_t partials = order.partials_of_channel();
  Sums<count> own[held];
#pragma unroll
  for (int k = 0; k < held; k++) own[k] = {};
  for (int64_t from = esp::lane_index(); from < partials; from += esp::partial_lanes) {
#pragma unroll
    for (int k = 0; k < held; k++) {
      if (from + k * 32 < partials) {
        const Sums<count> more = partial(order.partial(channel, from + k * 32));
        add(own[k], more);
      }
    }
  }
#pragma unroll
  for (int half = held / 2; half > 0; half /= 2) {
#pragma unroll
    for (int k = 0; k < half; k++) add(own[k], own[k + half]);
  }
  add_lanes(own[0], 32);
  return own[0];
}

}  // namespace
