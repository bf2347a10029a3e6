// How fake_quantize cuts a tensor into the windows that its kernels take on a processor, and the scales of
// these.
#pragma once
#include <initializer_list>
#include <memory>
#include <new>

#include "fake_quantize_kernel.h"
#include "fake_quantize_order.h"
#include "status.h"

namespace esp {

// Of a piece of work: x and y of one stay in a core's cache.
constexpr int64_t piece_elements = 32768;

inline int64_t at_least_one(int64_t n) {
  return n > 1 ? n : 1;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t unit) {
  return ceil_div(a, unit) * unit;
}

// A tensor [outer, channels, inner] is cut twice: into pieces, each with a partial result of its ranges, and
// into chunks, each with whole bytes of bits, for what is written. Both follow from the shape alone.
//
// Rows: a window lies in one channel and has one scale. Columns, for short inner sizes: the tensor is a
// QuantizeMatrix.
struct Layout {
  int64_t outer, channels, inner, n;
  bool columns;
  int64_t repeat, width, rows, rest;  // columns only
  // Pieces. Rows: of each channel. Columns: blocks of rows times strips.
  int64_t pieces, piece_rows, row_pieces;
  int64_t blocks, block_rows, strips, strip;

  Layout() = default;
  Layout(int64_t outer_size, int64_t channel_count, int64_t inner_size)
      : outer(outer_size),
        channels(channel_count),
        inner(inner_size),
        n(outer_size * channel_count * inner_size) {
    const QuantizeMatrix matrix = quantize_matrix(outer, channels, inner);
    columns = matrix.width > 0;
    if (columns) {
      repeat = matrix.repeat;
      width = matrix.width;
      rows = matrix.rows;
      rest = matrix.rest;
      // Long enough that adding up the blocks is little work, short enough that there are some for every
      // thread.
      block_rows = ceil_div(rows, 64) > 128 ? ceil_div(rows, 64) : 128;
      if (block_rows > rows) block_rows = rows;
      strip = width < 2048 ? width : 2048;
      blocks = ceil_div(rows, block_rows);
      strips = ceil_div(width, strip);
    } else if (n > 0) {
      row_pieces = inner >= piece_elements ? ceil_div(inner, piece_elements) : 1;
      piece_rows = inner >= piece_elements ? 1 : piece_elements / inner;
      if (piece_rows > outer) piece_rows = outer;
      pieces = ceil_div(outer, piece_rows) * row_pieces;
    } else {
      pieces = 0;
    }
  }

  // Pieces of the whole tensor.
  int64_t all_pieces() const {
    if (n == 0) return 0;
    return columns ? blocks * strips + (rest > 0 ? 1 : 0) : channels * pieces;
  }
  // Partial results: one a piece of rows, one a column for each block.
  int64_t partials() const {
    if (n == 0) return 0;
    return columns ? (blocks + (rest > 0 ? 1 : 0)) * width : channels * pieces;
  }
  // The window of a piece, where its partial results go, and the first column of its scales.
  Window piece(int64_t index, int64_t* partial, int64_t* scale) const {
    if (columns) {
      if (index == blocks * strips) {
        *partial = blocks * width;
        *scale = 0;
        return {rows * width, 1, rest, width};
      }
      const int64_t block = index / strips, first_column = index % strips * strip;
      const int64_t first_row = block * block_rows;
      *partial = block * width + first_column;
      *scale = first_column;
      return {first_row * width + first_column, rows - first_row < block_rows ? rows - first_row : block_rows,
              width - first_column < strip ? width - first_column : strip, width};
    }
    const int64_t channel = index / pieces, piece = index % pieces;
    const int64_t o = piece / row_pieces * piece_rows, i = piece % row_pieces * piece_elements;
    *partial = index;
    *scale = channel;
    return {(o * channels + channel) * inner + i, outer - o < piece_rows ? outer - o : piece_rows,
            row_pieces == 1 ? inner : (inner - i < piece_elements ? inner - i : piece_elements),
            channels * inner};
  }
  // Brings the partial results of all blocks together in the first, in order. Before gather().
  template <class T, class Add>
  void fold(T* partial, const Add& add) const {
    if (!columns) return;
    for (int64_t block = 1; block < blocks + (rest > 0 ? 1 : 0); block++) {
      const T* from = partial + block * width;
      for (int64_t i = 0; i < (block < blocks ? width : rest); i++) partial[i] = add(partial[i], from[i]);
    }
  }
  // Calls add(partial result) for what belongs to a channel, in order.
  template <class Add>
  void gather(int64_t channel, const Add& add) const {
    if (n == 0) return;
    if (!columns) {
      for (int64_t p = 0; p < pieces; p++) add(channel * pieces + p);
      return;
    }
    for (int64_t first = channel * inner; first < width; first += channels * inner) {
      for (int64_t i = 0; i < inner; i++) add(first + i);
    }
  }

  // Chunks of whole bytes of bits, for what is written.
  int64_t chunk_rows() const {
    return round_up(at_least_one(piece_elements / width), width % 8 == 0 ? 1 : 8);
  }
  int64_t chunk_strips() const { return width % 8 == 0 || rows == 1 ? ceil_div(width, piece_elements) : 1; }
  int64_t chunks() const {
    if (n == 0) return 0;
    if (!columns) return ceil_div(n, piece_elements);
    return ceil_div(rows, chunk_rows()) * chunk_strips() + (rest > 0 ? 1 : 0);
  }
  // Calls run(window, first scale) for the windows of a chunk, in order.
  template <class Run>
  void chunk(int64_t index, const Run& run) const {
    if (columns) {
      if (rest > 0 && index == chunks() - 1) return run(Window{rows * width, 1, rest, width}, 0);
      const int64_t row = index / chunk_strips() * chunk_rows();
      const int64_t height = rows - row < chunk_rows() ? rows - row : chunk_rows();
      if (chunk_strips() == 1) return run(Window{row * width, height, width, width}, 0);
      const int64_t column = index % chunk_strips() * piece_elements;
      return run(Window{row * width + column, height,
                        width - column < piece_elements ? width - column : piece_elements, width},
                 column);
    }
    int64_t first = index * piece_elements;
    const int64_t end = n - first < piece_elements ? n : first + piece_elements;
    while (first < end) {
      const int64_t row = first / inner, stop = (row + 1) * inner < end ? (row + 1) * inner : end;
      run(Window{first, 1, stop - first, stop - first}, row % channels);
      first = stop;
    }
  }
};

// The scales of a tensor as kernels take them: those of rows one by one, those of columns spread over a row
// of the matrix.
class WindowScales {
 public:
  // Room for the scales of columns.
  esp_status prepare(const char* operation, const Layout& layout) {
    layout_ = &layout;
    if (!layout.columns) return ESP_OK;
    spread_.reset(new (std::nothrow) float[static_cast<size_t>(3 * layout.width)]);
    if (!spread_) {
      return fail(ESP_OUT_OF_MEMORY, "%s: no memory for the scales of %lld columns", operation,
                  static_cast<long long>(layout.width));
    }
    return ESP_OK;
  }
  // One scale a channel, and one zero point or all 0. To be called again where they change.
  void set(const float* scale, const int32_t* zero_point) {
    scale_ = scale;
    zero_point_ = zero_point;
    if (!layout_->columns) return;
    float* const scales = spread_.get();
    float* const inverses = scales + layout_->width;
    float* const zeros = inverses + layout_->width;
    const int64_t inner = layout_->inner, period = layout_->channels * inner;
    for (int64_t c = 0; c < layout_->channels; c++) {
      const float zero = of(c).zero;
      for (int64_t i = c * inner; i < (c + 1) * inner; i++) {
        scales[i] = scale[c];
        zeros[i] = zero;
      }
    }
    for (int64_t i = 0; i < period; i++) inverses[i] = 1.0f / scales[i];
    for (float* values : {scales, inverses, zeros}) {
      for (int64_t i = period; i < layout_->width; i++) values[i] = values[i - period];
    }
  }

  Grid of(int64_t channel) const {
    return {scale_[channel], 1.0f / scale_[channel],
            zero_point_ == nullptr ? 0.0f : static_cast<float>(zero_point_[channel])};
  }
  // Of a matrix, from a column on.
  GridScale columns(int64_t first) const {
    const float* const v = spread_.get() + first;
    return {v, v + layout_->width, v + 2 * layout_->width, true};
  }
  // use(scales) of a window: `first` is its channel, of a matrix its first column.
  template <class Use>
  auto with(int64_t first, const Use& use) const {
    return layout_->columns ? use(columns(first)) : use(for_all(of(first)));
  }

 private:
  const Layout* layout_ = nullptr;
  const float* scale_ = nullptr;
  const int32_t* zero_point_ = nullptr;
  std::unique_ptr<float[]> spread_;  // scales, reciprocals, zero points
};

// ---- sums over channels, chunk by chunk in the order of fake_quantize_order.h: their units of work

// Columns of a matrix that are added up together.
inline int64_t strip_of(const SumOrder& order) {
  return order.matrix.width < 2048 ? at_least_one(order.matrix.width) : 2048;
}
inline int64_t sum_units(const SumOrder& order) {
  return order.columns() ? order.chunks * ceil_div(order.matrix.width, strip_of(order)) : order.partials();
}
// The segments of a chunk of a channel, of which there are at most chunk_segments; their number.
inline int64_t segments_of(const SumOrder& order, int64_t channel, int64_t chunk, Window* segments) {
  const int64_t first = chunk * chunk_segments;
  int64_t count = 0;
  for (; count < chunk_segments && first + count < order.segments; count++) {
    segments[count] = order.segment(channel, first + count);
  }
  return count;
}
// Calls rows(segments, count, channel, partial), or of a matrix columns(window, columns in its last row,
// first column, partial), for a unit; `partial` is the first of its partial sums.
template <class Rows, class Columns>
void run_sum_unit(const SumOrder& order, int64_t index, const Rows& rows, const Columns& columns) {
  if (!order.columns()) {
    Window segments[chunk_segments];
    const int64_t channel = index / order.chunks;
    const int64_t count = segments_of(order, channel, index % order.chunks, segments);
    rows(segments, count, channel, index);
    return;
  }
  const int64_t width = order.matrix.width, strip = strip_of(order), strips = ceil_div(width, strip);
  const int64_t row = index / strips * chunk_rows, column = index % strips * strip;
  const int64_t wide = width - column < strip ? width - column : strip;
  const int64_t height = order.height() - row < chunk_rows ? order.height() - row : chunk_rows;
  columns(Window{row * width + column, height, wide, width},
          row + height <= order.matrix.rows ? wide : order.matrix.rest - column, column,
          index / strips * width + column);
}
// The sum of a channel.
inline double total_of(const SumOrder& order, const double* partials, int64_t channel) {
  return add_partials(order.partials_of_channel(),
                      [&](int64_t i) { return partials[order.partial(channel, i)]; });
}

}  // namespace esp
