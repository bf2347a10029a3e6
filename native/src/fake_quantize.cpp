// fake_quantize: arguments checked, tensors cut into windows (fake_quantize_layout.h), windows run on the
// pool.
#include "espalier/fake_quantize.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <new>

#include "arguments.h"
#include "fake_quantize_arguments.h"
#include "fake_quantize_kernel.h"
#include "fake_quantize_layout.h"
#include "fake_quantize_order.h"
#include "fake_quantize_scale.h"
#include "thread_pool.h"

namespace {

using esp::at_least_one;
using esp::ceil_div;
using esp::Grid;
using esp::GridScale;
using esp::Layout;
using esp::ObservedRange;
using esp::piece_elements;
using esp::round_up;
using esp::Window;
using esp::WindowScales;

// The segments of a channel have 256 elements and more on average, its last one aside, so a piece has no more
// chunks.
constexpr int64_t channel_chunks = 1 + piece_elements / 256 / esp::chunk_segments;
constexpr int64_t prefetch_distance = 768;
// Two rows of up to this many bytes stay in the L1 cache beside a third that arrives and the output.
constexpr int64_t fetched_row = 8192;

bool overlaps(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(a), q = reinterpret_cast<uintptr_t>(b);
  return p < q + static_cast<uintptr_t>(b_bytes) && q < p + static_cast<uintptr_t>(a_bytes);
}

esp_status check_scales(const char* operation, int64_t index, const float* scale, const int32_t* zero_point,
                        int64_t channels, int32_t qmin, int32_t qmax) {
  if (channels > 0 && scale == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: the scales of tensor %lld are NULL", operation,
                     static_cast<long long>(index));
  }
  for (int64_t c = 0; c < channels; c++) {
    if (!esp::usable_scale(scale[c])) {
      return esp::fail(
          ESP_INVALID_ARGUMENT,
          "%s: tensor %lld, channel %lld: a scale of %g; it must be positive and finite, and so must its "
          "reciprocal in float32",
          operation, static_cast<long long>(index), static_cast<long long>(c), static_cast<double>(scale[c]));
    }
  }
  for (int64_t c = 0; c < (zero_point == nullptr ? 1 : channels); c++) {
    const int32_t zero = zero_point == nullptr ? 0 : zero_point[c];
    if (zero < qmin || zero > qmax) {
      return esp::fail(ESP_INVALID_ARGUMENT,
                       "%s: tensor %lld, channel %lld: a zero point of %d, outside %d .. %d", operation,
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

// ---- the forward call

constexpr int64_t no_channel = INT64_MAX;

// The range of a channel, and the best clip of it so far.
struct Clip {
  float minimum, maximum, scale;
  int32_t zero;
  double error;
};

// A tensor of the list on its way through the call: channel by channel, each observed and then applied while
// it is in the cache, or in passes over the whole list: ranges, scales, for the MSE observer errors ratio by
// ratio, then what is written.
struct ForwardTensor {
  Layout layout;
  esp::SumOrder order;  // MSE
  esp::QuantizeTarget target;
  bool by_channel;
  int64_t group;  // by_channel: channels a unit of work
  bool writes;    // y, q or gate is wanted
  WindowScales scales;
  std::unique_ptr<float[]> maximum, minimum;  // a partial result each; magnitudes have no minima
  std::unique_ptr<double[]> errors;           // MSE, not by_channel: a partial sum each
  std::unique_ptr<Clip[]> best;               // MSE, not by_channel: a channel each
  std::atomic<int64_t> nan{0}, infinite{0}, bad_channel{no_channel};

  void add(const esp::NonFinite& found) {
    if (found.nan != 0) nan.fetch_add(found.nan, std::memory_order_relaxed);
    if (found.infinite != 0) infinite.fetch_add(found.infinite, std::memory_order_relaxed);
  }
};

class ForwardCall {
 public:
  ForwardCall(const esp::FakeQuantizeKernels& kernels, const esp_quantizer& quantizer, esp_quantized* tensors,
              int64_t count)
      : kernels_(kernels), quantizer_(quantizer), tensors_(tensors), count_(count) {}

  esp_status run() {
    states_.reset(new (std::nothrow) ForwardTensor[static_cast<size_t>(at_least_one(count_))]);
    first_.reset(new (std::nothrow) int64_t[static_cast<size_t>(count_) + 1]);
    if (!states_ || !first_) return out_of_memory(count_);
    if (quantizer_.observer == ESP_OBSERVER_MSE) {
      ratios_.reset(new (std::nothrow) float[static_cast<size_t>(candidates())]);
      if (!ratios_) return out_of_memory(candidates());
      for (int32_t i = 0; i < candidates(); i++) {
        ratios_[i] = 1.0f - static_cast<float>(i) * (1.0f - quantizer_.clip_smallest) /
                                static_cast<float>(quantizer_.clip_steps);
      }
    }
    for (int64_t t = 0; t < count_; t++) {
      if (esp_status status = prepare(t)) return status;
    }
    if (observing()) observe();
    in_parallel(
        [](const ForwardTensor& s) {
          return s.by_channel ? ceil_div(s.layout.channels, s.group) : s.writes ? s.layout.chunks() : 0;
        },
        [&](int64_t t, int64_t unit) {
          if (states_[t].by_channel) {
            run_channels(t, unit);
          } else {
            apply_chunk(t, unit);
          }
        });
    return finish();
  }

 private:
  bool observing() const { return quantizer_.observer != ESP_OBSERVER_NONE; }
  bool absolute() const {
    return quantizer_.symmetric != 0 && quantizer_.observer != ESP_OBSERVER_MOVING_AVERAGE;
  }
  int32_t candidates() const {
    return quantizer_.observer == ESP_OBSERVER_MSE ? quantizer_.clip_steps + 1 : 1;
  }
  float ratio(int32_t candidate) const { return ratios_[candidate]; }

  esp_status out_of_memory(int64_t parts) const {
    return esp::fail(ESP_OUT_OF_MEMORY, "fake_quantize: no memory for %lld parts",
                     static_cast<long long>(parts));
  }

  esp_status prepare(int64_t t) {
    const esp_quantized& tensor = tensors_[t];
    ForwardTensor& s = states_[t];
    s.layout = Layout(tensor.outer, tensor.channels, tensor.inner);
    s.order = esp::sum_order(tensor.outer, tensor.channels, tensor.inner);
    const int64_t x_bytes = s.layout.n * esp::size_of(tensor.dtype),
                  y_bytes = s.layout.n * esp::size_of(tensor.y_dtype);
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
    s.by_channel = observing() && !s.layout.columns && s.layout.n > 0 && channel_elements <= piece_elements &&
                   (tensor.gate == nullptr || tensor.outer == 1 || tensor.inner % 8 == 0);
    if (esp_status status = s.scales.prepare("fake_quantize", s.layout)) return status;
    if (s.by_channel) {
      s.scales.set(tensor.scale, tensor.zero_point);
      const bool shares_bytes = tensor.gate != nullptr && tensor.inner % 8 != 0;
      // While a channel is applied from the cache, the one that is observed next is fetched.
      const int64_t row_bytes = tensor.inner * esp::size_of(tensor.dtype);
      if (tensor.outer == 1 && row_bytes >= prefetch_distance && row_bytes <= fetched_row)
        s.target.ahead = 2 * row_bytes;
      s.group = round_up(at_least_one(piece_elements / channel_elements), shares_bytes ? 8 : 1);
      return ESP_OK;
    }
    if (!observing()) {
      s.scales.set(tensor.scale, tensor.zero_point);
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
    esp::parallel_for(first_[count_], bytes, unit);
  }

  // Ranges, then scales, of the tensors that are not by_channel.
  void observe() {
    const auto pieces = [](const ForwardTensor& s) { return s.by_channel ? 0 : s.layout.all_pieces(); };
    in_parallel(pieces, [&](int64_t t, int64_t unit) {
      ForwardTensor& s = states_[t];
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
      ForwardTensor& s = states_[t];
      if (s.by_channel) continue;
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
      ForwardTensor& s = states_[t];
      if (s.by_channel || s.bad_channel != no_channel) continue;
      for (int64_t c = 0; s.best && c < s.layout.channels; c++) {
        tensors_[t].scale[c] = s.best[c].scale;
        if (tensors_[t].zero_point != nullptr) tensors_[t].zero_point[c] = s.best[c].zero;
      }
      s.scales.set(tensors_[t].scale, tensors_[t].zero_point);
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
    return esp::observed_scale(quantizer_, clip.minimum * ratio(candidate), clip.maximum * ratio(candidate),
                               zero);
  }

  // One candidate of the MSE search over the tensors that are not by_channel.
  void try_clip(int32_t candidate) {
    for (int64_t t = 0; t < count_; t++) {
      ForwardTensor& s = states_[t];
      if (s.by_channel) continue;
      for (int64_t c = 0; c < s.layout.channels; c++) {
        int32_t zero;
        const float scale = clipped_scale(s.best[c], candidate, &zero);
        tensors_[t].scale[c] = esp::usable_scale(scale) ? scale : 1.0f;
        if (tensors_[t].zero_point != nullptr) tensors_[t].zero_point[c] = zero;
      }
      s.scales.set(tensors_[t].scale, tensors_[t].zero_point);
    }
    in_parallel([](const ForwardTensor& s) { return s.by_channel ? 0 : esp::sum_units(s.order); },
                [&](int64_t t, int64_t unit) {
                  ForwardTensor& s = states_[t];
                  esp::run_sum_unit(
                      s.order, unit,
                      [&](const Window* segments, int64_t count, int64_t channel, int64_t partial) {
                        const Grid grid = s.scales.of(channel);
                        kernels_.error_rows(s.target, segments, count, &grid, 1, &s.errors[partial]);
                      },
                      [&](const Window& chunk, int64_t in_last, int64_t column, int64_t partial) {
                        kernels_.error_columns(s.target, chunk, in_last, s.scales.columns(column),
                                               &s.errors[partial]);
                      });
                });
    for (int64_t t = 0; t < count_; t++) {
      ForwardTensor& s = states_[t];
      if (s.by_channel) continue;
      for (int64_t c = 0; c < s.layout.channels; c++) {
        const double error = esp::total_of(s.order, s.errors.get(), c);
        int32_t zero;
        const float scale = clipped_scale(s.best[c], candidate, &zero);
        if (error < s.best[c].error && esp::usable_scale(scale)) {
          s.best[c] = {s.best[c].minimum, s.best[c].maximum, scale, zero, error};
        }
      }
    }
  }

  // A channel is observed before the one ahead of it is applied: its scale is ready when its turn comes.
  void run_channels(int64_t t, int64_t unit) {
    ForwardTensor& s = states_[t];
    const int64_t first = unit * s.group;
    const int64_t end = first + s.group < s.layout.channels ? first + s.group : s.layout.channels;
    observe_channel(t, first, 0);
    for (int64_t c = first; c < end; c++) {
      if (c + 1 < end)
        observe_channel(t, c + 1, c > first && s.target.ahead > prefetch_distance ? s.target.ahead / 2 : 0);
      if (!s.writes || !esp::usable_scale(tensors_[t].scale[c])) continue;
      kernels_.apply(s.target, whole_channel(s.layout, c), for_all(s.scales.of(c)));
    }
    if (s.target.stream) kernels_.fence();
  }

  static Window whole_channel(const Layout& l, int64_t c) {
    return {c * l.inner, l.outer, l.inner, l.channels * l.inner};
  }

  void observe_channel(int64_t t, int64_t c, int64_t ahead) {
    ForwardTensor& s = states_[t];
    const Window w = whole_channel(s.layout, c);
    const ObservedRange range = kernels_.observe(s.target.dtype, s.target.x, w, absolute(), ahead);
    s.add(range.non_finite);
    set_scale(t, c, range.min, range.max);
    if (quantizer_.observer == ESP_OBSERVER_MSE && esp::usable_scale(tensors_[t].scale[c]))
      search(t, c, range);
  }

  // The MSE search within one channel that is in the cache, some candidates at a time.
  void search(int64_t t, int64_t c, const ObservedRange& range) {
    constexpr int32_t most = esp::candidates_at_once;
    const ForwardTensor& s = states_[t];
    const int64_t chunks = s.order.partials_of_channel();
    double best = INFINITY;
    float best_scale = 1.0f;
    int32_t best_zero = 0;
    bool usable = true;
    for (int32_t first = 0; usable && first < candidates(); first += most) {
      Grid grids[most];
      int32_t zeros[most], tried = 0;
      for (; tried < most && first + tried < candidates(); tried++) {
        const float r = ratio(first + tried);
        const float scale = esp::observed_scale(quantizer_, range.min * r, range.max * r, &zeros[tried]);
        usable = esp::usable_scale(scale);
        if (!usable) break;
        grids[tried] = {scale, 1.0f / scale, static_cast<float>(zeros[tried])};
      }
      double partials[channel_chunks * most];
      for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Window segments[esp::chunk_segments];
        const int64_t count = esp::segments_of(s.order, c, chunk, segments);
        kernels_.error_rows(s.target, segments, count, grids, tried, partials + chunk * most);
      }
      for (int32_t i = 0; i < tried; i++) {
        const double error =
            esp::add_partials(chunks, [&](int64_t chunk) { return partials[chunk * most + i]; });
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

  void apply_chunk(int64_t t, int64_t unit) {
    ForwardTensor& s = states_[t];
    if (s.bad_channel != no_channel) return;
    s.layout.chunk(unit, [&](const Window& w, int64_t scale) {
      const esp::NonFinite found =
          s.scales.with(scale, [&](const GridScale& scales) { return kernels_.apply(s.target, w, scales); });
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
                       "fake_quantize: tensor %lld, channel %lld: its values give a scale of %g; it and its "
                       "reciprocal must be "
                       "finite in float32",
                       static_cast<long long>(t), static_cast<long long>(c),
                       static_cast<double>(tensors_[t].scale[c]));
    }
    return ESP_OK;
  }

  const esp::FakeQuantizeKernels& kernels_;
  const esp_quantizer& quantizer_;
  esp_quantized* const tensors_;
  const int64_t count_;
  std::unique_ptr<ForwardTensor[]> states_;
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
    if (esp_status status =
            esp::check_shape("fake_quantize", t, tensor.outer, tensor.channels, tensor.inner, &n))
      return status;
    if (esp_status status = esp::check_tensor("fake_quantize", t, tensor.x, n, tensor.dtype)) return status;
    if (tensor.y != nullptr && tensor.y_dtype != tensor.dtype && tensor.y_dtype != ESP_F32) {
      return esp::fail(ESP_INVALID_ARGUMENT,
                       "fake_quantize: tensor %lld: y has element type %d; that of x (%d) or F32 is needed",
                       index, tensor.y_dtype, tensor.dtype);
    }
    if (quantizer->observer == ESP_OBSERVER_NONE) {
      if (esp_status status = check_scales("fake_quantize", t, tensor.scale, tensor.zero_point,
                                           tensor.channels, quantizer->qmin, quantizer->qmax)) {
        return status;
      }
    } else if (tensor.channels > 0) {
      if (tensor.scale == nullptr) {
        return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: the scales of tensor %lld are NULL", index);
      }
      if (tensor.zero_point == nullptr && quantizer->symmetric == 0) {
        return esp::fail(
            ESP_INVALID_ARGUMENT,
            "fake_quantize: the zero points of tensor %lld are NULL, and affine observers write them", index);
      }
      if (tensor.running == nullptr && quantizer->observer == ESP_OBSERVER_MOVING_AVERAGE) {
        return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize: the running averages of tensor %lld are NULL",
                         index);
      }
    }
  }
  return ESP_OK;
}

// run(index) for `count` units of `n` elements together, in groups of as many as a piece has.
template <class Run>
void in_groups(int64_t count, int64_t n, int64_t bytes, const Run& run) {
  const int64_t group = at_least_one(piece_elements / at_least_one(n / at_least_one(count)));
  esp::parallel_for(ceil_div(count, group), bytes, [&](int64_t first) {
    for (int64_t index = first * group; index < count && index < (first + 1) * group; index++) run(index);
  });
}

}  // namespace

esp_status esp_fake_quantize(const esp_quantizer* quantizer, esp_quantized* tensors, int64_t count) {
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (esp_status status = check_forward(quantizer, tensors, count)) return status;
  return ForwardCall(*kernels, *quantizer, tensors, count).run();
}

esp_status esp_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n,
                                      esp_dtype dtype) {
  const esp::FakeQuantizeKernels* kernels;
  if (esp_status status = esp::select(esp::fake_quantize_variants, &kernels)) return status;
  if (esp_status status = esp::check_tensor("fake_quantize_backward", 0, grad_y, n, dtype)) return status;
  if (n > 0 && (gate == nullptr || grad_x == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize_backward: %s is NULL",
                     gate == nullptr ? "gate" : "grad_x");
  }
  const int64_t size = esp::size_of(dtype), bytes = n * size;
  const bool streaming = dtype == ESP_F32 && bytes > esp::cache_bytes &&
                         reinterpret_cast<uintptr_t>(grad_x) % 64 == 0 &&
                         !overlaps(grad_y, bytes, grad_x, bytes);
  const int64_t chunks = ceil_div(n, piece_elements);
  const auto run = [&](int64_t chunk) {
    const int64_t first = chunk * piece_elements;
    kernels->backward(dtype, static_cast<const char*>(grad_y) + first * size, gate + first / 8,
                      static_cast<char*>(grad_x) + first * size,
                      n - first < piece_elements ? n - first : piece_elements, streaming);
    if (streaming) kernels->fence();
  };
  esp::parallel_for(chunks, bytes, run);
  return ESP_OK;
}

esp_status esp_fake_quantize_scale_gradient(const esp_quantizer* quantizer,
                                            const esp_scale_gradient* gradient) {
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
  if (esp_status status =
          check_scales(name, 0, g.scale, g.zero_point, g.channels, quantizer->qmin, quantizer->qmax))
    return status;
  if (g.channels > 0 && g.grad_scale == nullptr)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: grad_scale is NULL", name);
  if (!std::isfinite(g.factor)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: a factor of %g", name, static_cast<double>(g.factor));
  }

  const Layout layout(g.outer, g.channels, g.inner);
  WindowScales scales;
  if (esp_status status = scales.prepare(name, layout)) return status;
  scales.set(g.scale, g.zero_point);
  const esp::SumOrder order = esp::sum_order(g.outer, g.channels, g.inner);
  const int64_t parts = order.partials();
  std::unique_ptr<double[]> sums(new (std::nothrow) double[static_cast<size_t>(2 * parts)]);
  if (!sums)
    return esp::fail(ESP_OUT_OF_MEMORY, "%s: no memory for %lld parts", name, static_cast<long long>(parts));
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
    esp::run_sum_unit(
        order, index,
        [&](const Window* segments, int64_t count, int64_t channel, int64_t partial) {
          kernels->scale_gradient_rows(target, segments, count, scales.of(channel), by_scale + partial,
                                       by_zero + partial);
        },
        [&](const Window& chunk, int64_t in_last, int64_t column, int64_t partial) {
          kernels->scale_gradient_columns(target, chunk, in_last, scales.columns(column), by_scale + partial,
                                          by_zero + partial);
        });
  };
  in_groups(esp::sum_units(order), n, n * esp::size_of(g.dtype), unit);
  const auto channel = [&](int64_t c) {
    const double factor = static_cast<double>(g.factor);
    g.grad_scale[c] = static_cast<float>(esp::total_of(order, by_scale, c) * factor);
    if (g.grad_zero_point != nullptr)
      g.grad_zero_point[c] = static_cast<float>(esp::total_of(order, by_zero, c) * factor);
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
  if (esp_status status = check_scales(name, 0, d.scale, d.zero_point, d.channels, d.is_signed ? -128 : 0,
                                       d.is_signed ? 127 : 255)) {
    return status;
  }
  const Layout layout(d.outer, d.channels, d.inner);
  WindowScales scales;
  if (esp_status status = scales.prepare(name, layout)) return status;
  scales.set(d.scale, d.zero_point);
  const int64_t bytes = n * esp::size_of(d.dtype);
  const esp::DequantizeTarget target = {d.q, d.y, d.dtype, d.is_signed != 0,
                                        d.dtype == ESP_F32 && bytes > esp::cache_bytes};
  const auto run = [&](int64_t chunk) {
    layout.chunk(chunk, [&](const Window& w, int64_t scale) {
      scales.with(scale, [&](const GridScale& of_window) { kernels->dequantize(target, w, of_window); });
    });
    if (target.stream) kernels->fence();
  };
  esp::parallel_for(layout.chunks(), bytes, run);
  return ESP_OK;
}
