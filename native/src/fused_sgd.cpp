#include "espalier/fused_sgd.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "arguments.h"
#include "espalier/gradient_norm.h"
#include "fused_sgd_kernel.h"
#include "thread_pool.h"

namespace {

// Elements of a piece of work: large ones keep memory streaming, several a thread balance a small list.
constexpr int64_t smallest_piece = 8192, largest_piece = 65536, pieces_a_thread = 8;
// A longer channel no longer sits in the second cache between its two passes; it is shared among threads
// instead.
constexpr int64_t longest_channel = 65536;
// Rows a piece at least, so that merging its column maxima costs little.
constexpr int64_t column_rows = 32;

int64_t elements(const esp_sgd_tensor& t) {
  return t.rows * t.cols;
}

int64_t copy_size(int32_t type) {
  return type == ESP_COPY_F32                            ? 4
         : type == ESP_COPY_BF16 || type == ESP_COPY_F16 ? 2
         : type == ESP_COPY_INT8                         ? 1
                                                         : 0;
}

int64_t channels(const esp_sgd_tensor& t) {
  return t.channel == ESP_CHANNEL_TENSOR ? 1 : t.channel == ESP_CHANNEL_ROW ? t.rows : t.cols;
}

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Whether scales must be known before anything can be quantized, which takes a second pass.
bool needs_second_pass(const esp_sgd_tensor& t) {
  if (t.scale == nullptr || t.scale_given || elements(t) == 0) return false;
  return t.channel == ESP_CHANNEL_COLUMN ||
         esp::row_length(t) * esp::aligned_rows(esp::row_length(t)) > longest_channel;
}

// Elements of a piece, about `wanted`; see SgdRange and FusedSgdKernels for what it must be a multiple of.
int64_t piece_of(const esp_sgd_tensor& t, int64_t wanted) {
  const bool whole_rows =
      t.scale != nullptr && !t.scale_given && (t.channel == ESP_CHANNEL_COLUMN || !needs_second_pass(t));
  if (!whole_rows) return wanted;
  const int64_t cols = esp::row_length(t), rows = (wanted + cols - 1) / cols;
  const int64_t least = t.channel == ESP_CHANNEL_COLUMN ? column_rows : 1;
  return cols * round_up(rows < least ? least : rows, esp::aligned_rows(cols));
}

int64_t pieces_of(const esp_sgd_tensor& t, int64_t wanted) {
  if (elements(t) == 0) return 0;
  const int64_t piece = piece_of(t, wanted);
  return (elements(t) + piece - 1) / piece;
}

bool usable(float scale) {
  return scale > 0 && std::isfinite(scale) && std::isfinite(1.0f / scale);
}

esp_status check(int64_t index, const esp_sgd_tensor& t, const esp_sgd_options& options) {
  const long long i = index;
  if (t.rows < 0 || t.cols < 0 || (t.cols > 0 && t.rows > esp::max_elements / t.cols)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: tensor %lld has %lld rows of %lld", i,
                     (long long)t.rows, (long long)t.cols);
  }
  const int64_t n = elements(t);
  if (esp_status status = esp::check_tensor("fused_sgd", index, t.gradient, n, t.gradient_dtype))
    return status;
  if (n > 0 && (t.weight == nullptr || (options.momentum > 0 && t.momentum == nullptr))) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: tensor %lld has no %s", i,
                     t.weight == nullptr ? "weight" : "momentum buffer, and momentum is not 0");
  }
  if (t.working_copy_type < ESP_COPY_NONE || t.working_copy_type > ESP_COPY_INT8) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_sgd: tensor %lld has working copy type %d; 0 to 4 are known", i,
                     t.working_copy_type);
  }
  if (n > 0 && (t.working_copy == nullptr) != (t.working_copy_type == ESP_COPY_NONE)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_sgd: tensor %lld has working copy type %d and %s working copy", i,
                     t.working_copy_type, t.working_copy == nullptr ? "no" : "a");
  }
  if (t.channel < ESP_CHANNEL_TENSOR || t.channel > ESP_CHANNEL_COLUMN) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: tensor %lld has channel %d; 0 to 2 are known", i,
                     t.channel);
  }
  if (t.scale == nullptr && (t.working_copy_type == ESP_COPY_INT8 || t.scale_given)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: tensor %lld has no scale, which %s needs", i,
                     t.scale_given ? "scale_given" : "an int8 working copy");
  }
  if (t.scale_given && n > 0) {
    for (int64_t c = 0; c < channels(t); c++) {
      if (!usable(t.scale[c])) {
        return esp::fail(
            ESP_INVALID_ARGUMENT,
            "fused_sgd: scale %lld of tensor %lld is %g; positive, with a finite reciprocal, is needed",
            (long long)c, i, static_cast<double>(t.scale[c]));
      }
    }
  }
  return ESP_OK;
}

bool at_least_zero(double x) {
  return x >= 0 && std::isfinite(static_cast<float>(x));
}

esp_status check(const esp_sgd_options& o) {
  if (!at_least_zero(o.learning_rate) || !at_least_zero(o.momentum) || !at_least_zero(o.weight_decay) ||
      !at_least_zero(o.max_norm) || !std::isfinite(static_cast<float>(o.dampening))) {
    return esp::fail(
        ESP_INVALID_ARGUMENT,
        "fused_sgd: learning rate %g, momentum %g, weight decay %g, max norm %g (finite, 0 or more), "
        "dampening %g (finite)",
        o.learning_rate, o.momentum, o.weight_decay, o.max_norm, o.dampening);
  }
  if (o.nesterov && !(o.momentum > 0 && o.dampening == 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fused_sgd: Nesterov needs momentum above 0 (%g) and dampening 0 (%g)", o.momentum,
                     o.dampening);
  }
  return ESP_OK;
}

// Fills norm, clip_factor, non_finite and skipped.
esp_status measure(const esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options& options,
                   esp_sgd_result* result) {
  std::unique_ptr<esp_gradient[]> gradients(new (std::nothrow) esp_gradient[static_cast<size_t>(count)]);
  if (!gradients)
    return esp::fail(ESP_OUT_OF_MEMORY, "fused_sgd: no memory for %lld tensors", (long long)count);
  for (int64_t i = 0; i < count; i++) {
    const esp_sgd_tensor& t = tensors[i];
    gradients[i] = {t.gradient, t.mask, t.gate, elements(t), t.gradient_dtype};
  }
  esp_gradient_norm_result norm;
  if (esp_status status = esp_gradient_norm(gradients.get(), count, &norm)) return status;
  result->norm = norm.norm;
  result->non_finite = norm.non_finite;
  if (norm.non_finite > 0 && options.skip_non_finite) {
    result->skipped = 1;
  } else if (norm.non_finite > 0) {
    return esp::fail(
        ESP_NON_FINITE,
        "fused_sgd: %lld gradient entries are NaN or infinite, so that the norm to clip by has no value; "
        "nothing was changed (skip_non_finite skips such a step)",
        (long long)norm.non_finite);
  } else if (options.max_norm > 0) {
    const double factor = options.max_norm / (norm.norm + 1e-6);
    result->clip_factor = factor < 1 ? factor : 1;
  }
  return ESP_OK;
}

void run(int64_t pieces, bool parallel, esp_task task, void* argument) {
  if (parallel) {
    esp::run_parallel(pieces, task, argument);
  } else {
    for (int64_t i = 0; i < pieces; i++) task(argument, i);
  }
}

// What the pieces of one step share.
struct Step {
  const esp::FusedSgdKernels* kernels;
  esp_sgd_tensor* tensors;
  int64_t count;
  const int64_t* first;  // the first piece of each tensor
  int64_t wanted;        // elements of a piece, about
  esp::SgdCoefficients coefficients;
  bool large;  // the working copies do not fit a cache
  std::atomic<int64_t> non_finite_channels;
};

bool streams(const Step& step, const esp_sgd_tensor& t) {
  return step.large && t.working_copy_type == ESP_COPY_F32 &&
         reinterpret_cast<uintptr_t>(t.working_copy) % 64 == 0 &&
         (t.scale == nullptr || esp::row_length(t) % 16 == 0 || t.channel == ESP_CHANNEL_TENSOR);
}

template <bool second>
void run_piece(void* argument, int64_t piece) {
  Step& step = *static_cast<Step*>(argument);
  const int64_t index = esp::find_part(step.first, step.count, piece);
  const esp_sgd_tensor& t = step.tensors[index];
  const int64_t size = piece_of(t, step.wanted), start = (piece - step.first[index]) * size;
  const esp::SgdRange range = {start, size < elements(t) - start ? size : elements(t) - start};
  if (second) {
    if (needs_second_pass(t)) step.kernels->quantize(t, range, streams(step, t));
  } else if (needs_second_pass(t)) {
    step.kernels->update(t, step.coefficients, range);
  } else if (int64_t broken = step.kernels->step(t, step.coefficients, range, streams(step, t))) {
    step.non_finite_channels.fetch_add(broken, std::memory_order_relaxed);
  }
}

}  // namespace

esp_status esp_fused_sgd(esp_sgd_tensor* tensors, int64_t count, const esp_sgd_options* options,
                         esp_sgd_result* result) {
  const esp::FusedSgdKernels* kernels;
  if (esp_status status = esp::select(esp::fused_sgd_variants, &kernels)) return status;
  if (options == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %s is NULL",
                     options == nullptr ? "options" : "result");
  }
  if (esp_status status = check(*options)) return status;
  if (esp_status status = esp::check_list("fused_sgd", tensors, count)) return status;
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = check(i, tensors[i], *options)) return status;
  }
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[static_cast<size_t>(count) + 1]);
  if (!first) return esp::fail(ESP_OUT_OF_MEMORY, "fused_sgd: no memory for %lld tensors", (long long)count);
  esp_sgd_result found = {std::numeric_limits<double>::quiet_NaN(), 1, 0, 0, 0};
  if (options->max_norm > 0 || options->skip_non_finite) {
    if (esp_status status = measure(tensors, count, *options, &found)) return status;
    if (found.skipped) {
      *result = found;
      return ESP_OK;
    }
  }

  int64_t total = 0, bytes = 0, copy_bytes = 0, slots = 0;
  for (int64_t i = 0; i < count; i++) total += elements(tensors[i]);
  const int64_t share = round_up(total / (pieces_a_thread * esp_threads_get()), 16);
  const int64_t wanted = share < smallest_piece  ? smallest_piece
                         : share > largest_piece ? largest_piece
                                                 : share;
  first[0] = 0;
  for (int64_t i = 0; i < count; i++) {
    const esp_sgd_tensor& t = tensors[i];
    first[i + 1] = first[i] + pieces_of(t, wanted);
    bytes += elements(t) * (16 + esp::size_of(t.gradient_dtype) + copy_size(t.working_copy_type));
    copy_bytes += elements(t) * copy_size(t.working_copy_type);
    if (needs_second_pass(t)) {
      for (int64_t c = 0; c < channels(t); c++) t.scale[c] = 0;
      slots += channels(t);
    }
  }
  const float factor = static_cast<float>(found.clip_factor);
  Step step{kernels,
            tensors,
            count,
            first.get(),
            wanted,
            {options->maximize ? -factor : factor, static_cast<float>(options->weight_decay),
             static_cast<float>(options->momentum), static_cast<float>(1 - options->dampening),
             static_cast<float>(-options->learning_rate), options->nesterov != 0},
            copy_bytes > esp::cache_bytes,
            {0}};
  const bool parallel = bytes >= esp::parallel_bytes;
  run(first[count], parallel, run_piece<false>, &step);
  if (slots > 0) {
    for (int64_t i = 0; i < count; i++) {
      const esp_sgd_tensor& t = tensors[i];
      for (int64_t c = 0; needs_second_pass(t) && c < channels(t); c++) {
        int32_t bits;
        std::memcpy(&bits, t.scale + c, 4);
        t.scale[c] = esp::scale_of(bits);
        if (std::isnan(t.scale[c])) step.non_finite_channels.fetch_add(1, std::memory_order_relaxed);
      }
    }
    run(first[count], parallel, run_piece<true>, &step);
  }
  for (int64_t i = 0; options->momentum > 0 && i < count; i++) tensors[i].first = 0;
  found.non_finite_channels = step.non_finite_channels.load(std::memory_order_relaxed);
  *result = found;
  return ESP_OK;
}
