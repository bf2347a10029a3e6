// How fake_quantize sees a tensor, and the order of its sums over channels (gradients of scales, errors of
// the MSE observer), which is part of their result, on every processor and device.
#pragma once
#include <cstdint>

#include "everywhere.h"

namespace esp {

// Part of a row-major tensor: `rows` rows of `columns` elements, `stride` elements apart, from flat index
// `first` on.
struct Window {
  int64_t first, rows, columns, stride;
};

// A tensor [outer, channels, inner] with many short rows is a matrix whose columns have a scale each. Narrow
// matrices take several rows as one, so that rows are whole vectors, and what is left over is a last, shorter
// row. Width 0: rows are long enough to have a scale each.
struct QuantizeMatrix {
  int64_t repeat, width;  // rows of the tensor in one of the matrix, columns
  int64_t rows, rest;     // whole rows, columns of the last one
};
ESP_EVERYWHERE inline QuantizeMatrix quantize_matrix(int64_t outer, int64_t channels, int64_t inner) {
  // Shorter rows cost more one by one than as columns, each with its scale.
  constexpr int64_t short_inner = 16, narrow = 256;
  const bool columns =
      channels > 1 && outer > 0 && inner > 0 && (inner == 1 || (inner < short_inner && outer > 1));
  if (!columns) return {0, 0, 0, 0};
  const int64_t period = channels * inner;
  int64_t repeat = 1;
  if (period < narrow) {
    while (period * repeat % 16 != 0) repeat *= 2;
    if (repeat > outer) repeat = 1;
  }
  return {repeat, period * repeat, outer / repeat, outer % repeat * period};
}

// Segments are what one thread of a device can add up: of rows, 16 lanes that each take every 16th element of
// a row; of a matrix, each column for itself. Segments side by side are a chunk: their sums are added in
// order, lane by lane or column by column; the lanes of rows then by a tree (lanes 0 to 7 with 8 to 15, then
// 4, 2, 1 apart). What chunks give to a channel is added up by add_partials.
constexpr int sum_lanes = 16;
constexpr int64_t segment_elements = 512;  // of one row, or of several that have no more together
constexpr int64_t segment_rows = 16;       // of a matrix
constexpr int64_t chunk_segments = 16;     // of rows
constexpr int64_t chunk_rows = 128;        // of a matrix
constexpr int partial_lanes = 256;

struct SumOrder {
  int64_t outer, channels, inner;  // one scale for all is one row
  QuantizeMatrix matrix;
  int64_t rows;      // of a segment of rows; 0: a row has several segments
  int64_t parts;     // segments of a row
  int64_t segments;  // rows: of a channel
  int64_t chunks;    // rows: of a channel; matrix: of all

  ESP_EVERYWHERE bool columns() const { return matrix.width > 0; }
  // Rows of the matrix, the short one included.
  ESP_EVERYWHERE int64_t height() const { return matrix.rows + (matrix.rest > 0 ? 1 : 0); }
  // Sums that chunks leave: rows: [channel][chunk]; matrix: [chunk][column].
  ESP_EVERYWHERE int64_t partials() const { return columns() ? chunks * matrix.width : channels * chunks; }
  // Those that belong to a channel, in the order in which they are added up.
  ESP_EVERYWHERE int64_t partials_of_channel() const {
    return columns() ? chunks * matrix.repeat * inner : chunks;
  }
  ESP_EVERYWHERE int64_t partial(int64_t channel, int64_t index) const {
    if (!columns()) return channel * chunks + index;
    const int64_t of_chunk = matrix.repeat * inner, chunk = index / of_chunk, turn = index - chunk * of_chunk;
    const int64_t repeated = turn / inner;
    return chunk * matrix.width + repeated * channels * inner + channel * inner + (turn - repeated * inner);
  }
  ESP_EVERYWHERE Window segment(int64_t channel, int64_t index) const {
    if (rows > 0) {
      const int64_t o = index * rows;
      return {(o * channels + channel) * inner, outer - o < rows ? outer - o : rows, inner, channels * inner};
    }
    const int64_t o = index / parts, i = (index - o * parts) * segment_elements;
    return {(o * channels + channel) * inner + i, 1,
            inner - i < segment_elements ? inner - i : segment_elements, inner};
  }
};
ESP_EVERYWHERE inline SumOrder sum_order(int64_t outer, int64_t channels, int64_t inner) {
  SumOrder order = {};
  order.outer = channels == 1 ? 1 : outer;
  order.channels = channels;
  order.inner = channels == 1 ? outer * inner : inner;
  order.matrix = quantize_matrix(order.outer, channels, order.inner);
  if (order.columns()) {
    order.chunks = (order.height() + chunk_rows - 1) / chunk_rows;
  } else if (order.outer > 0 && order.inner > 0) {
    order.rows = order.inner > segment_elements ? 0 : segment_elements / order.inner;
    order.parts = (order.inner + segment_elements - 1) / segment_elements;
    order.segments = order.rows > 0 ? (order.outer + order.rows - 1) / order.rows : order.outer * order.parts;
    order.chunks = (order.segments + chunk_segments - 1) / chunk_segments;
  }
  return order;
}

// The sum of `count` numbers at(0), at(1), ..., none of which is -0: 256 lanes, then a tree.
template <class At>
double add_partials(int64_t count, const At& at) {
  if (count == 1) return at(0);
  const int64_t used = count < partial_lanes ? count : partial_lanes;
  double lanes[partial_lanes];
  for (int64_t i = 0; i < used; i++) lanes[i] = at(i);
  for (int64_t i = partial_lanes; i < count; i++) lanes[i % partial_lanes] += at(i);
  for (int64_t half = partial_lanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half && i + half < used; i++) lanes[i] += lanes[i + half];
  }
  return used > 0 ? lanes[0] : 0;
}

}  // namespace esp
