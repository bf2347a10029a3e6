// What the entries of all fused optimizer steps do alike: arguments checked, the norm measured, the list cut
// into pieces and the pieces run. Tensor is the operation's own struct, see fused_step_kernel.h; what else
// differs is in its Operation, see run_step.
#pragma once
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "arguments.h"
#include "cpu_features.h"
#include "espalier/gradient_norm.h"
#include "espalier/step_noise.h"
#include "fake_quantize_scale.h"
#include "fused_step_kernel.h"
#include "thread_pool.h"

namespace esp {

// Elements of a piece of work: large ones keep memory streaming, several a thread balance a small list.
constexpr int64_t smallest_piece = 8192, largest_piece = 65536, pieces_a_thread = 8;
// A longer channel no longer sits in the second cache between its two passes; it is shared among threads
// instead.
constexpr int64_t longest_channel = 65536;
// Rows a piece at least, so that merging its column maxima costs little.
constexpr int64_t column_rows = 32;

template <class Tensor>
int64_t elements(const Tensor& t) {
  return t.rows * t.cols;
}

inline int64_t copy_size(int32_t type) {
  return type == ESP_COPY_F32                            ? 4
         : type == ESP_COPY_BF16 || type == ESP_COPY_F16 ? 2
         : type == ESP_COPY_INT8                         ? 1
                                                         : 0;
}

template <class Tensor>
int64_t channels(const Tensor& t) {
  return t.channel == ESP_CHANNEL_TENSOR ? 1 : t.channel == ESP_CHANNEL_ROW ? t.rows : t.cols;
}

inline int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Whether scales must be known before anything can be quantized, which takes a second pass.
template <class Tensor>
bool needs_second_pass(const Tensor& t) {
  if (t.scale == nullptr || t.scale_given || elements(t) == 0) return false;
  return t.channel == ESP_CHANNEL_COLUMN || row_length(t) * aligned_rows(row_length(t)) > longest_channel;
}

// Elements of a piece, about `wanted`; see StepRange and StepKernels for what it must be a multiple of.
template <class Tensor>
int64_t piece_of(const Tensor& t, int64_t wanted) {
  const bool whole_rows =
      t.scale != nullptr && !t.scale_given && (t.channel == ESP_CHANNEL_COLUMN || !needs_second_pass(t));
  if (!whole_rows) return wanted;
  const int64_t cols = row_length(t), rows = (wanted + cols - 1) / cols;
  const int64_t least = t.channel == ESP_CHANNEL_COLUMN ? column_rows : 1;
  return cols * round_up(rows < least ? least : rows, aligned_rows(cols));
}

template <class Tensor>
int64_t pieces_of(const Tensor& t, int64_t wanted) {
  if (elements(t) == 0) return 0;
  const int64_t piece = piece_of(t, wanted);
  return (elements(t) + piece - 1) / piece;
}

// Whether an option is one once it is an F32.
inline bool at_least_zero(double x) {
  return x >= 0 && std::isfinite(static_cast<float>(x));
}

inline esp_status check_noise(const char* operation, const esp_step_noise& noise) {
  const float divisor = static_cast<float>(noise.divisor);
  if (!at_least_zero(noise.sigma) || (noise.sigma > 0 && !(divisor > 0 && std::isfinite(divisor)))) {
    return fail(ESP_INVALID_ARGUMENT,
                "%s: noise of deviation %g and divisor %g; finite, 0 or more and above 0, are needed",
                operation, noise.sigma, noise.divisor);
  }
  return ESP_OK;
}

inline StepNoise step_noise(const esp_step_noise& noise, bool maximize) {
  return {maximize ? -noise.sigma : noise.sigma, static_cast<uint64_t>(noise.key),
          static_cast<uint64_t>(noise.counter), static_cast<float>(noise.divisor)};
}

// Each tensor's first block of noise, from that of the first.
template <class Tensor, class Coefficients>
void number_noise(const Tensor* tensors, int64_t count, Coefficients* coefficients) {
  for (int64_t i = 1; i < count; i++) {
    coefficients[i].noise.counter =
        coefficients[i - 1].noise.counter + static_cast<uint64_t>((elements(tensors[i - 1]) + 1) / 2);
  }
}

// All but the operation's own state and what lies in the buffers.
template <class Tensor>
esp_status check_layout(const char* operation, int64_t index, const Tensor& t) {
  const long long i = index;
  if (t.rows < 0 || t.cols < 0 || (t.cols > 0 && t.rows > max_elements / t.cols)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has %lld rows of %lld", operation, i,
                (long long)t.rows, (long long)t.cols);
  }
  const int64_t n = elements(t);
  if (esp_status status = check_tensor(operation, index, t.gradient, n, t.gradient_dtype)) return status;
  if (n > 0 && t.weight == nullptr) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has no weight", operation, i);
  }
  if (t.working_copy_type < ESP_COPY_NONE || t.working_copy_type > ESP_COPY_INT8) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has working copy type %d; 0 to 4 are known", operation,
                i, t.working_copy_type);
  }
  if (n > 0 && (t.working_copy == nullptr) != (t.working_copy_type == ESP_COPY_NONE)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has working copy type %d and %s working copy",
                operation, i, t.working_copy_type, t.working_copy == nullptr ? "no" : "a");
  }
  if (t.channel < ESP_CHANNEL_TENSOR || t.channel > ESP_CHANNEL_COLUMN) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has channel %d; 0 to 2 are known", operation, i,
                t.channel);
  }
  if (t.scale == nullptr && (t.working_copy_type == ESP_COPY_INT8 || t.scale_given)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has no scale, which %s needs", operation, i,
                t.scale_given ? "scale_given" : "an int8 working copy");
  }
  return ESP_OK;
}

// All but the operation's own state.
template <class Tensor>
esp_status check_step(const char* operation, int64_t index, const Tensor& t) {
  if (esp_status status = check_layout(operation, index, t)) return status;
  const long long i = index;
  for (int64_t c = 0; t.scale_given && elements(t) > 0 && c < channels(t); c++) {
    if (!usable_scale(t.scale[c])) {
      return fail(ESP_INVALID_ARGUMENT,
                  "%s: scale %lld of tensor %lld is %g; positive, with a finite reciprocal, is needed",
                  operation, (long long)c, i, static_cast<double>(t.scale[c]));
    }
  }
  return ESP_OK;
}

// Fills norm, clip_factor, non_finite and skipped of the operation's result, where max_norm or
// skip_non_finite of its options ask for them.
template <class Tensor, class Options, class Result>
esp_status measure(const char* operation, const Tensor* tensors, int64_t count, const Options& options,
                   Result* result) {
  *result = {};
  result->norm = std::nan("");
  result->clip_factor = 1;
  if (!(options.max_norm > 0) && !options.skip_non_finite) return ESP_OK;
  std::unique_ptr<esp_gradient[]> gradients(new (std::nothrow) esp_gradient[static_cast<size_t>(count)]);
  if (!gradients)
    return fail(ESP_OUT_OF_MEMORY, "%s: no memory for %lld tensors", operation, (long long)count);
  for (int64_t i = 0; i < count; i++) {
    const Tensor& t = tensors[i];
    gradients[i] = {t.gradient, t.mask, t.gate, elements(t), t.gradient_dtype};
  }
  esp_gradient_norm_result norm;
  if (esp_status status = esp_gradient_norm(gradients.get(), count, &norm)) return status;
  result->norm = norm.norm;
  result->non_finite = norm.non_finite;
  if (norm.non_finite > 0 && options.skip_non_finite) {
    result->skipped = 1;
  } else if (norm.non_finite > 0) {
    return fail(ESP_NON_FINITE,
                "%s: %lld gradient entries are NaN or infinite, so that the norm to clip by has no value; "
                "nothing was changed (skip_non_finite skips such a step)",
                operation, (long long)norm.non_finite);
  } else if (options.max_norm > 0) {
    const double factor = options.max_norm / (norm.norm + 1e-6);
    result->clip_factor = factor < 1 ? factor : 1;
  }
  return ESP_OK;
}

// The step over a list, tensor i with coefficients[i].
template <class Tensor, class Coefficients>
class FusedStep {
 public:
  using Kernels = StepKernels<Tensor, Coefficients>;

  // state_bytes: of latent weight and moments read and written, an element.
  FusedStep(const Kernels& kernels, const Tensor* tensors, int64_t count, const Coefficients* coefficients,
            int64_t state_bytes)
      : kernels_(kernels), tensors_(tensors), count_(count), coefficients_(coefficients) {
    int64_t total = 0, bytes = 0, copy_bytes = 0;
    for (int64_t i = 0; i < count; i++) {
      const Tensor& t = tensors[i];
      total += elements(t);
      bytes += elements(t) * (state_bytes + size_of(t.gradient_dtype) + copy_size(t.working_copy_type));
      copy_bytes += elements(t) * copy_size(t.working_copy_type);
    }
    const int64_t share = round_up(total / (pieces_a_thread * thread_limit()), 16);
    wanted_ = share < smallest_piece ? smallest_piece : share > largest_piece ? largest_piece : share;
    large_ = copy_bytes > cache_bytes;
    parallel_ = bytes >= parallel_bytes;
  }

  // `first` is room for count + 1 numbers. Returns the channels whose new scale is NaN.
  int64_t run(int64_t* first) {
    first_ = first;
    bool second = false;
    first[0] = 0;
    for (int64_t i = 0; i < count_; i++) {
      const Tensor& t = tensors_[i];
      first[i + 1] = first[i] + pieces_of(t, wanted_);
      if (needs_second_pass(t)) {
        for (int64_t c = 0; c < channels(t); c++) t.scale[c] = 0;
        second = true;
      }
    }
    run_pieces(run_piece<false>);
    if (second) {
      find_scales();
      run_pieces(run_piece<true>);
    }
    return non_finite_channels_.load(std::memory_order_relaxed);
  }

 private:
  void run_pieces(esp_task task) {
    if (parallel_) {
      run_parallel(first_[count_], task, this);
    } else {
      for (int64_t i = 0; i < first_[count_]; i++) task(this, i);
    }
  }

  // From the bits of absmax that the first pass left in their place.
  void find_scales() {
    for (int64_t i = 0; i < count_; i++) {
      const Tensor& t = tensors_[i];
      for (int64_t c = 0; needs_second_pass(t) && c < channels(t); c++) {
        int32_t bits;
        std::memcpy(&bits, t.scale + c, 4);
        t.scale[c] = scale_of(bits);
        if (std::isnan(t.scale[c])) non_finite_channels_.fetch_add(1, std::memory_order_relaxed);
      }
    }
  }

  bool streams(const Tensor& t) const {
    return large_ && t.working_copy_type == ESP_COPY_F32 &&
           reinterpret_cast<uintptr_t>(t.working_copy) % 64 == 0 &&
           (t.scale == nullptr || row_length(t) % 16 == 0 || t.channel == ESP_CHANNEL_TENSOR);
  }

  template <bool second>
  static void run_piece(void* argument, int64_t piece) {
    FusedStep& step = *static_cast<FusedStep*>(argument);
    const int64_t index = find_part(step.first_, step.count_, piece);
    const Tensor& t = step.tensors_[index];
    const Coefficients& c = step.coefficients_[index];
    const int64_t size = piece_of(t, step.wanted_), start = (piece - step.first_[index]) * size;
    const StepRange range = {start, size < elements(t) - start ? size : elements(t) - start};
    if (second) {
      if (needs_second_pass(t)) step.kernels_.quantize(t, range, step.streams(t));
    } else if (needs_second_pass(t)) {
      step.kernels_.update(t, c, range);
    } else if (int64_t broken = step.kernels_.step(t, c, range, step.streams(t))) {
      step.non_finite_channels_.fetch_add(broken, std::memory_order_relaxed);
    }
  }

  const Kernels& kernels_;
  const Tensor* tensors_;
  int64_t count_;
  const Coefficients* coefficients_;
  const int64_t* first_;  // the first piece of each tensor
  int64_t wanted_;        // elements of a piece, about
  bool large_;            // the working copies do not fit a cache
  bool parallel_;
  std::atomic<int64_t> non_finite_channels_{0};
};

// The entry of an operation. An Operation says:
// - Tensor, Options, Coefficients: its structs; name: for messages
// - state_bytes: of latent weight and moments read and written, an element
// - check(options); check(index, tensor, options): of what is the operation's own
// - prepare(options, clip_factor, tensors, count, coefficients): all of them but the blocks of noise
// - advance(options, tensor): what a step leaves in a tensor's struct
template <class Operation, class Kernels>
esp_status run_step(const Variants<Kernels>& variants, typename Operation::Tensor* tensors, int64_t count,
                    const typename Operation::Options* options, esp_step_result* result) {
  using Tensor = typename Operation::Tensor;
  using Coefficients = typename Operation::Coefficients;
  constexpr const char* name = Operation::name;
  const Kernels* kernels;
  if (esp_status status = select(variants, &kernels)) return status;
  if (options == nullptr || result == nullptr) {
    return fail(ESP_INVALID_ARGUMENT, "%s: %s is NULL", name, options == nullptr ? "options" : "result");
  }
  if (esp_status status = Operation::check(*options)) return status;
  if (esp_status status = check_list(name, tensors, count)) return status;
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = check_step(name, i, tensors[i])) return status;
    if (esp_status status = Operation::check(i, tensors[i], *options)) return status;
  }
  const size_t room = static_cast<size_t>(count) + 1;
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[room]);
  std::unique_ptr<Coefficients[]> coefficients(new (std::nothrow) Coefficients[room]);
  if (!first || !coefficients) {
    return fail(ESP_OUT_OF_MEMORY, "%s: no memory for %lld tensors", name, (long long)count);
  }
  esp_step_result found;
  if (esp_status status = measure(name, tensors, count, *options, &found)) return status;
  if (!found.skipped) {
    Operation::prepare(*options, found.clip_factor, tensors, count, coefficients.get());
    number_noise(tensors, count, coefficients.get());
    FusedStep<Tensor, Coefficients> step(*kernels, tensors, count, coefficients.get(),
                                         Operation::state_bytes);
    found.non_finite_channels = step.run(first.get());
    for (int64_t i = 0; i < count; i++) Operation::advance(*options, tensors[i]);
  }
  *result = found;
  return ESP_OK;
}

}  // namespace esp
