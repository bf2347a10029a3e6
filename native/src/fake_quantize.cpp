#include "espalier/fake_quantize.h"

#include <atomic>
#include <cmath>
#include <initializer_list>
#include <memory>
#include <new>

#include "arguments.h"
#include "fake_quantize_arguments.h"
#include "fake_quantize_kernel.h"
#include "fake_quantize_order.h"
#include "fake_quantize_scale.h"
#include "thread_pool.h"

namespace {

using esp::GridScale;
using esp::ObservedRange;
using esp::Window;

// Part of the result where sums are formed a piece and then added in order. A piece of x and y stays in a core's cache.
constexpr int64_t piece_elements = 32768;
// The segments of a channel have 256 elements and more on average, its last one aside, so a piece has no more chunks.
constexpr int64_t fused_chunks = 1 + piece_elements / 256 / esp::chunk_segments;
constexpr int64_t prefetch_distance = 768;
// Two rows of up to this many bytes stay in the L1 cache beside a third that arrives and the output.
constexpr int64_t fetched_row = 8192;

int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }
bool overlaps(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(a), q = reinterpret_cast<uintptr_t>(b);
  return p < q + static_cast<uintptr_t>(b_bytes) && q < p + static_cast<uintptr_t>(a_bytes);
}

// How a tensor [outer, channels, inner] is cut into windows; a function of the shape alone.
//
// Rows: a window lies in one channel and has one scale. Columns, for short inner sizes: the tensor is a QuantizeMatrix.
struct Layout {
  int64_t outer, channels, inner, n;
  bool columns;
  int64_t repeat, width, rows, rest;  // columns only
  // Pieces for sums and ranges. Rows: of each channel. Columns: blocks of rows times strips.
  int64_t pieces, piece_rows, row_pieces;
  int64_t blocks, block_rows, strips, strip;

  Layout() = default;
  Layout(int64_t outer_size, int64_t channel_count, int64_t inner_size)
      : outer(outer_size), channels(channel_count), inner(inner_size), n(outer_size * channel_count * inner_size) {
    const esp::QuantizeMatrix matrix = esp::quantize_matrix(outer, channels, inner);
    columns = matrix.width > 0;
    if (columns) {
      repeat = matrix.repeat;
      width = matrix.width;
      rows = matrix.rows;
      rest = matrix.rest;
      // Long enough that adding up the blocks is little work, short enough that there are some for every thread.
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
            row_pieces == 1 ? inner : (inner - i < piece_elements ? inner - i : piece_elements), channels * inner};
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
  int64_t chunk_rows() const { return round_up(at_least_one(piece_elements / width), width % 8 == 0 ? 1 : 8); }
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
      return run(Window{row * width + column, height, width - column < piece_elements ? width - column : piece_elements, width},
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

// The scales of a tensor in the form that kernels take: as they are for rows, spread over the columns otherwise.
class SpreadScales {
 public:
  esp_status prepare(const char* operation, const Layout& layout) {
    if (!layout.columns) return ESP_OK;
    values_.reset(new (std::nothrow) float[static_cast<size_t>(3 * layout.width)]);
    if (!values_) {
      return esp::fail(ESP_OUT_OF_MEMORY, "%s: no memory for the scales of %lld columns", operation,
                       static_cast<long long>(layout.width));
    }
    return ESP_OK;
  }
  void spread(const Layout& layout, const float* scale, const int32_t* zero_point) {
    if (!layout.columns) return;
    float* const scales = values_.get();
    float* const inverses = scales + layout.width;
    float* const zeros = inverses + layout.width;
    const int64_t inner = layout.inner, period = layout.channels * inner;
    for (int64_t c = 0; c < layout.channels; c++) {
      for (int64_t i = c * inner; i < (c + 1) * inner; i++) scales[i] = scale[c];
    }
    for (int64_t i = 0; i < period; i++) inverses[i] = 1.0f / scales[i];
    for (int64_t c = 0; c < layout.channels; c++) {
      const float zero = zero_point == nullptr ? 0.0f : static_cast<float>(zero_point[c]);
      for (int64_t i = c * inner; i < (c + 1) * inner; i++) zeros[i] = zero;
    }
    for (float* values : {scales, inverses, zeros}) {
      for (int64_t i = period; i < layout.width; i++) values[i] = values[i - period];
    }
  }
  GridScale from(const Layout& layout, int64_t column) const {
    const float* v = values_.get() + column;
    return {v, v + layout.width, v + 2 * layout.width, true};
  }

 private:
  std::unique_ptr<float[]> values_;
};

// One channel's scale on the stack of the caller.
struct OneScale {
  float scale, inverse, zero;
  OneScale(const float* scales, const int32_t* zero_points, int64_t channel)
      : scale(scales[channel]),
        inverse(1.0f / scale),
        zero(zero_points == nullptr ? 0.0f : static_cast<float>(zero_points[channel])) {}
  GridScale grid() const { return {&scale, &inverse, &zero, false}; }
};

esp_status check_scales(const char* operation, int64_t index, const float* scale, const int32_t* zero_point, int64_t channels,
                        int32_t qmin, int32_t qmax) {
  if (channels > 0 && scale == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: the scales of tensor %lld are NULL", operation, static_cast<long long>(index));
  }
  for (int64_t c = 0; c < channels; c++) {
    if (!esp::usable_scale(scale[c])) {
      return esp::fail(ESP_INVALID_ARGUMENT,
                       "%s: tensor %lld, channel %lld: a scale of %g; it must be positive and finite, and so must its "
                       "reciprocal in float32",
                       operation, static_cast<long long>(index), static_cast<long long>(c), static_cast<double>(scale[c]));
    }
  }
  for (int64_t c = 0; c < (zero_point == nullptr ? 1 : channels); c++) {
    const int32_t zero = zero_point == nullptr ? 0 : zero_point[c];
    if (zero < qmin || zero > qmax) {
      return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld, channel %lld: a zero point of %d, outside %d .. %d", operation,
                       static_cast<long long>(index), static_cast<long long>(c), zero, qmin, qmax);
    }
  }
  return ESP_OK;
}

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load(std::memory_order_relaxed);
  while (value < seen && !least.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// ---- sums over channels, chunk by chunk in the order of fake_quantize_order.h

// Columns of a matrix that are added up together.
int64_t strip_of(const esp::SumOrder& order) {
  return order.matrix.width < 2048 ? at_least_one(order.matrix.width) : 2048;
}
int64_t sum_units(const esp::SumOrder& order) {
  return order.columns() ? order.chunks * ceil_div(order.matrix.width, strip_of(order)) : order.partials();
}
// The segments of a chunk of a channel, of which there are at most chunk_segments; their number.
int64_t segments_of(const esp::SumOrder& order, int64_t channel, int64_t chunk, Window* segments) {
  const int64_t first = chunk * esp::chunk_segments;
  int64_t count = 0;
  for (; count < esp::chunk_segments && first + count < order.segments; count++) {
    segments[count] = order.segment(channel, first + count);
  }
  return count;
}
// rows(segments, count, channel, partial) or columns(window, columns in its last row, first column, partial) for a unit.
template <class Rows, class Columns>
void run_sum_unit(const esp::SumOrder& order, int64_t index, const Rows& rows, const Columns& columns) {
  if (!order.columns()) {
    Window segments[esp::chunk_segments];
    const int64_t channel = index / order.chunks;
    const int64_t count = segments_of(order, channel, index % order.chunks, segments);
    rows(segments, count, channel, index);
    return;
  }
  const int64_t width = order.matrix.width, strip = strip_of(order), strips = ceil_div(width, strip);
  const int64_t row = index / strips * esp::chunk_rows, column = index % strips * strip;
  const int64_t wide = width - column < strip ? width - column : strip;
  const int64_t height = order.height() - row < esp::chunk_rows ? order.height() - row : esp::chunk_rows;
  columns(Window{row * width + column, height, wide, width},
          row + height <= order.matrix.rows ? wide : order.matrix.rest - column, column, index / strips * width + column);
}
double total_of(const esp::SumOrder& order, const double* partials, int64_t channel) {
  return esp::add_partials(order.partials_of_channel(), [&](int64_t i) { return partials[order.partial(channel, i)]; });
}

// ---- the forward call

constexpr int64_t no_channel = INT64_MAX;

// The range of a channel, and the best clip of it so far.
struct Clip {
  float minimum, maximum, scale;
  int32_t zero;
  double error;
};

// A tensor of the list on its way through the call.
struct Forward {
  Layout layout;
  esp::SumOrder order;  // MSE
  esp::QuantizeTarget target;
  bool fused;      // observed and applied channel by channel, while the channel is in the cache
  int64_t group;   // fused: channels a unit
  bool writes;     // y, q or gate is wanted
  SpreadScales spread;
  std::unique_ptr<float[]> maximum, minimum;  // a partial result each; magnitudes have no minima
  std::unique_ptr<double[]> errors;           // MSE, not fused: a partial sum each
  std::unique_ptr<Clip[]> best;               // MSE, not fused: a channel each
  std::atomic<int64_t> nan{0}, infinite{0}, bad_channel{no_channel};

  void add(const esp::NonFinite& found) {
    if (found.nan != 0) nan.fetch_add(found.nan, std::memory_order_relaxed);
    if (found.infinite != 0) infinite.fetch_add(found.infinite, std::memory_order_relaxed);
  }
};

class ForwardCall {
 public:
  ForwardCall(const esp::FakeQuantizeKernels& kernels, const esp_quantizer& quantizer, esp_quantized* tensors, int64_t count)
      : kernels_(kernels), quantizer_(quantizer), tensors_(tensors), count_(count) {}

  esp_status run() {
    states_.reset(new (std::nothrow) Forward[static_cast<size_t>(at_least_one(count_))]);
    first_.reset(new (std::nothrow) int64_t[static_cast<size_t>(count_) + 1]);
    if (!states_ || !first_) return out_of_memory(count_);
    if (quantizer_.observer == ESP_OBSERVER_MSE) {
      ratios_.reset(new (std::nothrow) float[static_cast<size_t>(candidates())]);
      if (!ratios_) return out_of_memory(candidates());
      for (int32_t i = 0; i < candidates(); i++) {
        ratios_[i] = 1.0f - static_cast<float>(i) * (1.0f - quantizer_.clip_smallest) / static_cast<float>(quantizer_.clip_steps);
      }
    }
    for (int64_t t = 0; t < count_; t++) {
      if (esp_status status = prepare(t)) return status;
    }
    if (observing()) observe();
    in_parallel([](const Forward& s) { return s.fused ? ceil_div(s.layout.channels, s.group) : s.writes ? s.layout.chunks() : 0; },
                [&](int64_t t, int64_t unit) {
                  if (states_[t].fused) {
                    fused_unit(t, unit);
                  } else {
                    apply_unit(t, unit);
                  }
                });
    return finish();
  }

 private:
  bool observing() const { return quantizer_.observer != ESP_OBSERVER_NONE; }
  bool absolute() const { return quantizer_.symmetric != 0 && quantizer_.observer != ESP_OBSERVER_MOVING_AVERAGE; }
  int32_t candidates() const { return quantizer_.observer == ESP_OBSERVER_MSE ? quantizer_.clip_steps + 1 : 1; }
  float ratio(int32_t candidate) const { return ratios_[candidate]; }

  esp_status out_of_memory(int64_t parts) const {
    return esp::fail(ESP_OUT_OF_MEMORY, "fake_quantize: no memory for %lld parts", static_cast<long long>(parts));
  }

  esp_status prepare(int64_t t) {
    const esp_quantized& tensor = tensors_[t];
    Forward& s = states_[t];
    s.layout = Layout(tensor.outer, tensor.channels, tensor.inner);
    s.order = esp::sum_order(tensor.outer, tensor.channels, tensor.inner);
    const int64_t x_bytes = s.layout.n * esp::size_of(tensor.dtype), y_bytes = s.layout.n * esp::size_of(tensor.y_dtype);
    const bool streaming = tensor.y != nullptr && tensor.y_dtype == ESP_F32 && y_bytes > esp::cache_bytes &&
                           !overlaps(tensor.x, x_bytes, tensor.y, y_bytes);
    s.target = {tensor.x,
                tensor.y,
                tensor.q,
                tensor.gate,
                tensor.dtype,
                tensor.y_dtype,
                static_cast<float>(quantizer_.qmin),
                static_cast<float>(quantizer_.qmax),
                quantizer_.rounding == ESP_ROUND_DIVIDE,
                streaming,
                prefetch_distance};
    s.writes = tensor.y != nullptr || tensor.q != nullptr || tensor.gate != nullptr || !observing();
    const int64_t channel_elements = tensor.outer * tensor.inner;
    s.fused = observing() && !s.layout.columns && s.layout.n > 0 && channel_elements <= piece_elements &&
              (tensor.gate == nullptr || tensor.outer == 1 || tensor.inner % 8 == 0);
    if (s.fused) {
      const bool shares_bytes = tensor.gate != nullptr && tensor.inner % 8 != 0;
      // While a channel is applied from the cache, the one that is observed next is fetched.
      const int64_t row_bytes = tensor.inner * esp::size_of(tensor.dtype);
      if (tensor.outer == 1 && row_bytes >= prefetch_distance && row_bytes <= fetched_row) s.target.ahead = 2 * row_bytes;
      s.group = round_up(at_least_one(piece_elements / channel_elements), shares_bytes ? 8 : 1);
      return ESP_OK;
    }
    if (esp_status status = s.spread.prepare("fake_quantize", s.layout)) return status;
    if (!observing()) {
      s.spread.spread(s.layout, tensor.scale, tensor.zero_point);
      return ESP_OK;
    }
    const int64_t parts = s.layout.partials();
    s.maximum.reset(new (std::nothrow) float[static_cast<size_t>(parts)]);
    if (!absolute()) s.minimum.reset(new (std::nothrow) float[static_cast<size_t>(parts)]);
    if (!s.maximum || (!absolute() && !s.minimum)) return out_of_memory(parts);
    if (quantizer_.observer == ESP_OBSERVER_MSE) {
      s.errors.reset(new (std::nothrow) double[static_cast<size_t>(s.order.partials())]);
      s.best.reset(new (std::nothrow) Clip[static_cast<size_t>(tensor.channels)]);
      if (!s.errors || !s.best) return out_of_memory(parts);
    }
    return ESP_OK;
  }

  // run(t, unit) for units_of(state of t) units of each tensor, in parallel where there is enough to do.
  template <class UnitsOf, class Run>
  void in_parallel(const UnitsOf& units_of, const Run& run) {
    first_[0] = 0;
    int64_t bytes = 0;
    for (int64_t t = 0; t < count_; t++) {
      first_[t + 1] = first_[t] + units_of(states_[t]);
      bytes += states_[t].layout.n * esp::size_of(tensors_[t].dtype);
    }
    const auto unit = [&](int64_t index) {
      const int64_t t = esp::find_part(first_.get(), count_, index);
      run(t, index - first_[t]);
    };
    if (bytes < esp::parallel_bytes) {
      for (int64_t index = 0; index < first_[count_]; index++) unit(index);
    } else {
      esp::parallel_for(first_[count_], unit);
    }
  }

  // Ranges, then scales, of the tensors that are not fused.
  void observe() {
    const auto pieces = [](const Forward& s) { return s.fused ? 0 : s.layout.all_pieces(); };
    in_parallel(pieces, [&](int64_t t, int64_t unit) {
      Forward& s = states_[t];
      int64_t partial, scale;
      const Window w = s.layout.piece(unit, &partial, &scale);
      if (s.layout.columns) {
        float* const minimum = absolute() ? nullptr : &s.minimum[partial];
        float* const maximum = &s.maximum[partial];
        for (int64_t i = 0; i < w.columns; i++) maximum[i] = absolute() ? 0.0f : -INFINITY;
        for (int64_t i = 0; i < w.columns && minimum != nullptr; i++) minimum[i] = INFINITY;
        s.add(kernels_.observe_columns(s.target.dtype, s.target.x, w, absolute(), minimum, maximum));
      } else {
        const ObservedRange range = kernels_.observe(s.target.dtype, s.target.x, w, absolute(), 0);
        s.maximum[partial] = range.max;
        if (!absolute()) s.minimum[partial] = range.min;
        s.add(range.non_finite);
      }
    });
    for (int64_t t = 0; t < count_; t++) {
      Forward& s = states_[t];
      if (s.fused) continue;
      s.layout.fold(s.maximum.get(), [](float a, float b) { return b > a ? b : a; });
      if (!absolute()) s.layout.fold(s.minimum.get(), [](float a, float b) { return b < a ? b : a; });
      for (int64_t c = 0; c < s.layout.channels; c++) {
        float minimum = INFINITY, maximum = -INFINITY;
        s.layout.gather(c, [&](int64_t part) {
          maximum = s.maximum[part] > maximum ? s.maximum[part] : maximum;
          if (!absolute()) minimum = s.minimum[part] < minimum ? s.minimum[part] : minimum;
        });
        if (absolute()) minimum = -maximum;
        set_scale(t, c, minimum, maximum);
        if (s.best) s.best[c] = {minimum, maximum, 1.0f, 0, INFINITY};
      }
    }
    for (int32_t i = 0; i < candidates() && quantizer_.observer == ESP_OBSERVER_MSE; i++) try_clip(i);
    for (int64_t t = 0; t < count_; t++) {
      Forward& s = states_[t];
      if (s.fused || s.bad_channel != no_channel) continue;
      for (int64_t c = 0; s.best && c < s.layout.channels; c++) {
        tensors_[t].scale[c] = s.best[c].scale;
        if (tensors_[t].zero_point != nullptr) tensors_[t].zero_point[c] = s.best[c].zero;
      }
      s.spread.spread(s.layout, tensors_[t].scale, tensors_[t].zero_point);
    }
  }

  // The scale and zero point of a channel from its range, and the moving average on the way.
  void set_scale(int64_t t, int64_t channel, float minimum, float maximum) {
    const esp_quantized& tensor = tensors_[t];
    if (quantizer_.observer == ESP_OBSERVER_MOVING_AVERAGE) {
      float* low = tensor.running + channel;
      float* high = tensor.running + tensor.channels + channel;
      if (minimum <= maximum) {
        *low = std::isfinite(*low) ? *low + quantizer_.average * (minimum - *low) : minimum;
        *high = std::isfinite(*high) ? *high + quantizer_.average * (maximum - *high) : maximum;
      }
      minimum = *low;
      maximum = *high;
    }
    int32_t zero;
    const float scale = esp::observed_scale(quantizer_, minimum, maximum, &zero);
    if (!esp::usable_scale(scale)) lower(states_[t].bad_channel, channel);
    tensor.scale[channel] = scale;
    if (tensor.zero_point != nullptr) tensor.zero_point[channel] = zero;
  }

  float clipped_scale(const Clip& clip, int32_t candidate, int32_t* zero) const {
    return esp::observed_scale(quantizer_, clip.minimum * ratio(candidate), clip.maximum * ratio(candidate), zero);
  }

  // One candidate of the MSE search over the tensors that are not fused.
  void try_clip(int32_t candidate) {
    for (int64_t t = 0; t < count_; t++) {
      Forward& s = states_[t];
      if (s.fused) continue;
      for (int64_t c = 0; c < s.layout.channels; c++) {
        int32_t zero;
        const float scale = clipped_scale(s.best[c], candidate, &zero);
        tensors_[t].scale[c] = esp::usable_scale(scale) ? scale : 1.0f;
        if (tensors_[t].zero_point != nullptr) tensors_[t].zero_point[c] = zero;
      }
      s.spread.spread(s.layout, tensors_[t].scale, tensors_[t].zero_point);
    }
    in_parallel([](const Forward& s) { return s.fused ? 0 : sum_units(s.order); },
                [&](int64_t t, int64_t unit) {
                  Forward& s = states_[t];
                  run_sum_unit(
                      s.order, unit,
                      [&](const Window* segments, int64_t count, int64_t channel, int64_t partial) {
                        kernels_.error_rows(s.target, segments, count,
                                            OneScale(tensors_[t].scale, tensors_[t].zero_point, channel).grid(),
                                            &s.errors[partial]);
                      },
                      [&](const Window& chunk, int64_t in_last, int64_t column, int64_t partial) {
                        kernels_.error_columns(s.target, chunk, in_last, s.spread.from(s.layout, column), &s.errors[partial]);
                      });
                });
    for (int64_t t = 0; t < count_; t++) {
      Forward& s = states_[t];
      if (s.fused) continue;
      for (int64_t c = 0; c < s.layout.channels; c++) {
        const double error = total_of(s.order, s.errors.get(), c);
        int32_t zero;
        const float scale = clipped_scale(s.best[c], candidate, &zero);
        if (error < s.best[c].error && esp::usable_scale(scale)) {
          s.best[c] = {s.best[c].minimum, s.best[c].maximum, scale, zero, error};
        }
      }
    }
  }

  // A channel is observed before the one ahead of it is applied: its scale is ready when its turn comes.
  void fused_unit(int64_t t, int64_t unit) {
    Forward& s = states_[t];
    const int64_t first = unit * s.group;
    const int64_t end = first + s.group < s.layout.channels ? first + s.group : s.layout.channels;
    observe_channel(t, first, 0);
    for (int64_t c = first; c < end; c++) {
      if (c + 1 < end) observe_channel(t, c + 1, c > first && s.target.ahead > prefetch_distance ? s.target.ahead / 2 : 0);
      const float* scale = tensors_[t].scale;
      if (!s.writes || !esp::usable_scale(scale[c])) continue;
      kernels_.apply(s.target, whole_channel(s.layout, c), OneScale(scale, tensors_[t].zero_point, c).grid());
    }
    if (s.target.stream) kernels_.fence();
  }

  static Window whole_channel(const Layout& l, int64_t c) { return {c * l.inner, l.outer, l.inner, l.channels * l.inner}; }

  void observe_channel(int64_t t, int64_t c, int64_t ahead) {
    Forward& s = states_[t];
    const Window w = whole_channel(s.layout, c);
    const ObservedRange range = kernels_.observe(s.target.dtype, s.target.x, w, absolute(), ahead);
    s.add(range.non_finite);
    set_scale(t, c, range.min, range.max);
    if (quantizer_.observer == ESP_OBSERVER_MSE && esp::usable_scale(tensors_[t].scale[c])) search(t, c, range);
  }

  // The MSE search within one channel that is in the cache, some candidates at a time.
  void search(int64_t t, int64_t c, const ObservedRange& range) {
    constexpr int32_t most = esp::candidates_at_once;
    const Forward& s = states_[t];
    const int64_t chunks = s.order.partials_of_channel();
    double best = INFINITY;
    float best_scale = 1.0f;
    int32_t best_zero = 0;
    bool usable = true;
    for (int32_t first = 0; usable && first < candidates(); first += most) {
      esp::CandidateGrid grids[most];
      int32_t zeros[most], tried = 0;
      for (; tried < most && first + tried < candidates(); tried++) {
        const float r = ratio(first + tried);
        const float scale = esp::observed_scale(quantizer_, range.min * r, range.max * r, &zeros[tried]);
        usable = esp::usable_scale(scale);
        if (!usable) break;
        grids[tried] = {scale, 1.0f / scale, static_cast<float>(zeros[tried])};
      }
      double partials[fused_chunks * most];
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Window segments[esp::chunk_segments];
        const int64_t count = segments_of(s.order, c, chunk, segments);
        kernels_.candidate_errors(s.target, segments, count, grids, tried, partials + chunk * most);
      }
      for (int32_t i = 0; i < tried; i++) {
        const double error = esp::add_partials(chunks, [&](int64_t chunk) { return partials[chunk * most + i]; });
        if (error < best) {
          best = error;
          best_scale = grids[i].scale;
          best_zero = zeros[i];
        }
      }
    }
    tensors_[t].scale[c] = best_scale;
    if (tensors_[t].zero_point != nullptr) tensors_[t].zero_point[c] = best_zero;
  }

  void apply_unit(int64_t t, int64_t unit) {
    Forward& s = states_[t];
    if (s.bad_channel != no_channel) return;
    s.layout.chunk(unit, [&](const Window& w, int64_t scale) {
      const esp::NonFinite found =
          s.layout.columns
              ? kernels_.apply(s.target, w, s.spread.from(s.layout, scale))
              : kernels_.apply(s.target, w, OneScale(tensors_[t].scale, tensors_[t].zero_point, scale).grid());
      if (!observing()) s.add(found);
    });
    if (s.target.stream) kernels_.fence();
  }

  esp_status finish() {
    for (int64_t t = 0; t < count_; t++) {
      tensors_[t].nan = states_[t].nan;
      tensors_[t].infinite = states_[t].infinite;
    }
    for (int64_t t = 0; t < count_; t++) {
      const int64_t c = states_[t].bad_channel;
      if (c == no_channel) continue;
      return esp::fail(ESP_NON_FINITE,
                       "fake_quantize: tensor %lld, channel %lld: its values give a scale of %g; it and its reciprocal must be "
                       "finite in float32",
                       static_cast<long long>(t), static_cast<long long>(c), static_cast<double>(tensors_[t].scale[c]));
    }
    return ESP_OK;
  }

  const esp::FakeQuantizeKernels& kernels_;
  const esp_quantizer& quantizer_;
  esp_quantized* const tensors_;
  const int64_t count_;
  std::unique_ptr<Forward[]> states_;
  std::unique_ptr<int64_t[]> first_;
  std::unique_ptr<float[]> ratios_;  // MSE
};

esp_status check_forward(const esp_quantizer* quantizer, const esp_quantized* tensors, int64_t count) {
  if (esp_status status = esp::check_quantizer("fake_quantize", quantizer)) return status;
  if (esp_status status = esp::check_list("fake_quantize", tensors, count)) return status;
  for (int64_t t = 0; t < count; t++) {
    const esp_quantized& tensor = tensors[t];
    const long long index = t;
    int64_t n = 0;
    if (esp_status status = esp::check_shape("fake_quantize", t, tensor.outer, tensor.channels, tensor.inner, &n)) return status;
    if (esp_status status = esp::check_tensor("fake_quantize", t, tensor.x, n, tensor.dtype)) return status;
    if (tensor.y != nullptr && tensor.y_dtype != tensor.dtype && tensor.y_dtype != ESP_F32) {
      return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: tensor %lld: y has element type %d; that of x (%d) or F32 is needed",
                       index, tensor.y_dtype, tensor.dtype);
    }
    if (quantizer->observer == ESP_OBSERVER_NONE) {
      if (esp_status status = check_scales("fake_quantize", t, tensor.scale, tensor.zero_point, tensor.channels, quantizer->qmin,
                                           quantizer->qmax)) {
        return status;
      }
    } else if (tensor.channels > 0) {
      if (tensor.scale == nullptr) {
        return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: the scales of tensor %lld are NULL", index);
      }
      if (tensor.zero_point == nullptr && quantizer->symmetric == 0) {
        return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: the zero points of tensor %lld are NULL, and affine observers write them",
                         index);
      }
      if (tensor.running == nullptr && quantizer->observer == ESP_OBSERVER_MOVING_AVERAGE) {
        return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: the running averages of tensor %lld are NULL", index);
      }
    }
  }
  return ESP_OK;
}

// run(index) for `count` units of `n` elements together, in groups of as many as a piece has.
template <class Run>
void in_groups(int64_t count, int64_t n, int64_t bytes, const Run& run) {
  const int64_t group = at_least_one(piece_elements / at_least_one(n / at_least_one(count)));
  const auto several = [&](int64_t first) {
    for (int64_t index = first * group; index < count && index < (first + 1) * group; index++) run(index);
  };
  if (bytes < esp::parallel_bytes) {
    for (int64_t index = 0; index < count; index++) run(index);
  } else {
    esp::parallel_for(ceil_div(count, group), several);
  }
}

}  // namespace

esp_status esp_fake_quantize(const esp_quantizer* quantizer, esp_quantized* tensors, int64_t count) {
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (esp_status status = check_forward(quantizer, tensors, count)) return status;
  return ForwardCall(*kernels, *quantizer, tensors, count).run();
}

esp_status esp_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n, esp_dtype dtype) {
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (esp_status status = esp::check_tensor("fake_quantize_backward", 0, grad_y, n, dtype)) return status;
  if (n > 0 && (gate == nullptr || grad_x == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize_backward: %s is NULL", gate == nullptr ? "gate" : "grad_x");
  }
  const int64_t size = esp::size_of(dtype), bytes = n * size;
  const bool streaming = dtype == ESP_F32 && bytes > esp::cache_bytes && reinterpret_cast<uintptr_t>(grad_x) % 64 == 0 &&
                         !overlaps(grad_y, bytes, grad_x, bytes);
  const int64_t chunks = ceil_div(n, piece_elements);
  const auto run = [&](int64_t chunk) {
    const int64_t first = chunk * piece_elements;
    kernels->backward(dtype, static_cast<const char*>(grad_y) + first * size, gate + first / 8,
                      static_cast<char*>(grad_x) + first * size, n - first < piece_elements ? n - first : piece_elements, streaming);
    if (streaming) kernels->fence();
  };
  if (bytes < esp::parallel_bytes) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) run(chunk);
  } else {
    esp::parallel_for(chunks, run);
  }
  return ESP_OK;
}

esp_status esp_fake_quantize_scale_gradient(const esp_quantizer* quantizer, const esp_scale_gradient* gradient) {
  constexpr const char* name = "fake_quantize_scale_gradient";
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (esp_status status = esp::check_grid(name, quantizer)) return status;
  if (gradient == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: the gradient is NULL", name);
  const esp_scale_gradient& g = *gradient;
  int64_t n = 0;
  if (esp_status status = esp::check_shape(name, 0, g.outer, g.channels, g.inner, &n)) return status;
  if (esp_status status = esp::check_tensor(name, 0, g.x, n, g.dtype)) return status;
  if (n > 0 && g.grad_y == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: grad_y is NULL", name);
  if (esp_status status = check_scales(name, 0, g.scale, g.zero_point, g.channels, quantizer->qmin, quantizer->qmax)) return status;
  if (g.channels > 0 && g.grad_scale == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: grad_scale is NULL", name);
  if (!std::isfinite(g.factor)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: a factor of %g", name, static_cast<double>(g.factor));
  }

  const Layout layout(g.outer, g.channels, g.inner);
  SpreadScales spread;
  if (esp_status status = spread.prepare(name, layout)) return status;
  spread.spread(layout, g.scale, g.zero_point);
  const esp::SumOrder order = esp::sum_order(g.outer, g.channels, g.inner);
  const int64_t parts = order.partials();
  std::unique_ptr<double[]> sums(new (std::nothrow) double[static_cast<size_t>(2 * parts)]);
  if (!sums) return esp::fail(ESP_OUT_OF_MEMORY, "%s: no memory for %lld parts", name, static_cast<long long>(parts));
  const esp::ScaleGradientTarget target = {g.x,
                                           g.grad_y,
                                           g.grad_x,
                                           g.dtype,
                                           static_cast<float>(quantizer->qmin),
                                           static_cast<float>(quantizer->qmax),
                                           quantizer->rounding == ESP_ROUND_DIVIDE};
  double* const by_scale = sums.get();
  double* const by_zero = by_scale + parts;
  const auto unit = [&](int64_t index) {
    run_sum_unit(
        order, index,
        [&](const Window* segments, int64_t count, int64_t channel, int64_t partial) {
          kernels->scale_gradient_rows(target, segments, count, OneScale(g.scale, g.zero_point, channel).grid(),
                                       by_scale + partial, by_zero + partial);
        },
        [&](const Window& chunk, int64_t in_last, int64_t column, int64_t partial) {
          kernels->scale_gradient_columns(target, chunk, in_last, spread.from(layout, column), by_scale + partial,
                                          by_zero + partial);
        });
  };
  in_groups(sum_units(order), n, n * esp::size_of(g.dtype), unit);
  const auto channel = [&](int64_t c) {
    const double factor = static_cast<double>(g.factor);
    g.grad_scale[c] = static_cast<float>(total_of(order, by_scale, c) * factor);
    if (g.grad_zero_point != nullptr) g.grad_zero_point[c] = static_cast<float>(total_of(order, by_zero, c) * factor);
  };
  in_groups(g.channels, parts, parts * static_cast<int64_t>(sizeof(double)), channel);
  return ESP_OK;
}

esp_status esp_dequantize(const esp_dequantized* tensor) {
  constexpr const char* name = "dequantize";
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (tensor == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: the tensor is NULL", name);
  const esp_dequantized& d = *tensor;
  int64_t n = 0;
  if (esp_status status = esp::check_shape(name, 0, d.outer, d.channels, d.inner, &n)) return status;
  if (esp_status status = esp::check_tensor(name, 0, d.y, n, d.dtype)) return status;
  if (n > 0 && d.q == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: q is NULL", name);
  if (esp_status status = check_scales(name, 0, d.scale, d.zero_point, d.channels, d.is_signed ? -128 : 0, d.is_signed ? 127 : 255)) {
    return status;
  }
  const Layout layout(d.outer, d.channels, d.inner);
  SpreadScales spread;
  if (esp_status status = spread.prepare(name, layout)) return status;
  spread.spread(layout, d.scale, d.zero_point);
  const int64_t bytes = n * esp::size_of(d.dtype);
  const esp::DequantizeTarget target = {d.q, d.y, d.dtype, d.is_signed != 0, d.dtype == ESP_F32 && bytes > esp::cache_bytes};
  const auto run = [&](int64_t chunk) {
    layout.chunk(chunk, [&](const Window& w, int64_t scale) {
      if (layout.columns) {
        kernels->dequantize(target, w, spread.from(layout, scale));
      } else {
        kernels->dequantize(target, w, OneScale(d.scale, d.zero_point, scale).grid());
      }
    });
    if (target.stream) kernels->fence();
  };
  if (bytes < esp::parallel_bytes) {
    for (int64_t chunk = 0; chunk < layout.chunks(); chunk++) run(chunk);
  } else {
    esp::parallel_for(layout.chunks(), run);
  }
  return ESP_OK;
}
