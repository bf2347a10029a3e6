// magnitude_prune over a list: which k weights are the smallest, found without sorting or copying them.
//
// 1. A sample of the weights gives a bracket that holds the k-th smallest key with near certainty.
// 2. One pass over the weights counts what lies below the bracket and at its two ends, and collects what lies inside
//    (about 1 %). Heavy ties make the bracket's ends meet them, where they are counted and not collected.
// 3. The k-th is one of the ends, or is found among the collected by histograms of 4096 bins. Where the bracket missed or
//    held more than the scratch memory takes, the counts say on which side; histograms over the weights then narrow
//    the rest down to a bracket that fits, and the pass is repeated.
// 4. The ties to prune are the first in list order, so one position in the list divides them: with the key it says
//    for each weight alone whether it is pruned. That is the cut.
// 5. One pass applies it, backwards, because the cache still holds the end of the list.
#include "espalier/magnitude_prune.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "arguments.h"
#include "magnitude_prune_arguments.h"
#include "magnitude_prune_kernel.h"
#include "magnitude_prune_sample.h"
#include "thread_pool.h"

namespace {

using esp::prune_nan_key;
using Kernels = esp::PruneKernels;

constexpr int64_t chunk_elements = 16384;
constexpr int64_t task_chunks = 4;       // taken at once: prefetching starts anew with each task
constexpr int64_t histogram_chunks = 8;  // a task's bins are merged once
constexpr int64_t collect_all = 65536;   // so few weights need no sample
constexpr int64_t line_task = 64;        // sampled lines that are fetched together
constexpr int64_t subsample = 8;         // of so many lines one serves to measure the scatter
constexpr double deviations = 4;         // half the bracket, in standard deviations of a sample rank

int64_t chunks_of(int64_t n) { return (n + chunk_elements - 1) / chunk_elements; }
int64_t bits_bytes(int64_t n) { return (n + 7) / 8; }

template <class T>
std::unique_ptr<T[]> make(int64_t n) {
  return std::unique_ptr<T[]>(new (std::nothrow) T[static_cast<size_t>(n)]);
}

esp_status no_memory() { return esp::fail(ESP_OUT_OF_MEMORY, "magnitude_prune: no scratch memory"); }

// The tensors cut into chunks, numbered in list order.
class List {
 public:
  esp_status set(const esp_prune_tensor* list, int64_t list_count) {
    tensors = list;
    count = list_count;
    first_chunk_ = make<int64_t>(count + 1);
    first_element_ = make<int64_t>(count + 1);
    if (!first_chunk_ || !first_element_) return no_memory();
    bytes = first_chunk_[0] = first_element_[0] = 0;
    for (int64_t t = 0; t < count; t++) {
      bytes += tensors[t].n * esp::size_of(tensors[t].dtype);
      first_chunk_[t + 1] = first_chunk_[t] + chunks_of(tensors[t].n);
      first_element_[t + 1] = first_element_[t] + tensors[t].n;
    }
    return ESP_OK;
  }

  int64_t chunks() const { return first_chunk_[count]; }
  int64_t elements() const { return first_element_[count]; }

  struct Chunk {
    int64_t tensor, start;  // which elements
    esp_dtype dtype;
    esp::PruneBlock block;
  };
  Chunk chunk(int64_t index) const {
    const int64_t t = esp::find_part(first_chunk_.get(), count, index);
    const esp_prune_tensor& tensor = tensors[t];
    const int64_t start = (index - first_chunk_[t]) * chunk_elements;
    const int64_t n = tensor.n - start < chunk_elements ? tensor.n - start : chunk_elements;
    return {t, start, tensor.dtype,
            {static_cast<const char*>(tensor.weights) + start * esp::size_of(tensor.dtype),
             tensor.mask_in == nullptr ? nullptr : tensor.mask_in + start / 8, n}};
  }
  // The tensor of a flat element, which becomes its index there.
  int64_t tensor_of(int64_t* element) const {
    const int64_t t = esp::find_part(first_element_.get(), count, *element);
    *element -= first_element_[t];
    return t;
  }

  // visit(i) for each chunk, last task first where `backwards`.
  template <class Visit>
  void each_chunk(bool backwards, Visit&& visit) const {
    const int64_t tasks = (chunks() + task_chunks - 1) / task_chunks;
    each(tasks, [&](int64_t task) {
      const int64_t start = (backwards ? tasks - 1 - task : task) * task_chunks;
      for (int64_t i = start; i < start + task_chunks && i < chunks(); i++) visit(i);
    });
  }

  // task(i) for i in [0, n), on this thread where the list is small.
  template <class Task>
  void each(int64_t n, Task&& task) const {
    esp::parallel_for(n, bytes, task);
  }

  const esp_prune_tensor* tensors = nullptr;
  int64_t count = 0;
  int64_t bytes = 0;

 private:
  std::unique_ptr<int64_t[]> first_chunk_, first_element_;
};

// Room for keys, untouched until it is used; on large pages where it is large.
class Keys {
 public:
  Keys() = default;
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;
  ~Keys() {
    if (paged_ != nullptr) esp_release(paged_, bytes_);
  }

  bool allocate(int64_t count) {
    bytes_ = count * 4;
    if (bytes_ < paged_bytes) {  // esp_allocate would write zeros
      small_ = make<int32_t>(count);
      return small_ != nullptr;
    }
    return esp_allocate(bytes_, &paged_) == ESP_OK;
  }
  int32_t* get() const { return paged_ != nullptr ? static_cast<int32_t*>(paged_) : small_.get(); }

 private:
  static constexpr int64_t paged_bytes = int64_t{4} << 20;
  std::unique_ptr<int32_t[]> small_;
  void* paged_ = nullptr;
  int64_t bytes_ = 0;
};

// Keys low .. low + span - 1, of which there are `count` and before which there are `below`.
struct Range {
  int32_t low, span;
  int64_t below, count;
};

// The part of `range` that holds the k-th smallest key of the list (from 1): one key, or at most `enough` of them.
Range narrow(const Kernels* kernels, const List& list, int64_t k, Range range, int64_t enough) {
  while (range.span > 1 && range.count > enough) {
    int32_t shift = 0;
    while ((range.span - 1) >> shift >= esp::prune_bins) shift++;
    int64_t bins[esp::prune_bins] = {};
    list.each((list.chunks() + histogram_chunks - 1) / histogram_chunks, [&](int64_t task) {
      uint32_t own[esp::prune_bins] = {};
      const int64_t end = (task + 1) * histogram_chunks;
      for (int64_t i = task * histogram_chunks; i < end && i < list.chunks(); i++) {
        const List::Chunk chunk = list.chunk(i);
        kernels->histogram(chunk.dtype, chunk.block, range.low, range.span, shift, own);
      }
      for (int32_t bin = 0; bin < esp::prune_bins; bin++) {
        if (own[bin] != 0) __atomic_fetch_add(&bins[bin], own[bin], __ATOMIC_RELAXED);
      }
    });
    const int32_t last = (range.span - 1) >> shift;
    int32_t bin = 0;
    for (; bin < last && range.below + bins[bin] < k; bin++) range.below += bins[bin];
    range.count = bins[bin];
    const int32_t width = range.span - (bin << shift);
    range.low += bin << shift;
    range.span = width < 1 << shift ? width : 1 << shift;
  }
  return range;
}

// What the pass over the weights found in one chunk.
struct ChunkCounts {
  int64_t offset;  // of its keys among the collected
  uint16_t below, at_low, inside, at_high;
};
static_assert(chunk_elements <= UINT16_MAX, "a chunk's counts fit");

// Keys that are counted at both ends and collected between them.
struct Bracket {
  int32_t low, high;
};

class Selection {
 public:
  Selection(const Kernels* kernels, const List& list, int64_t remaining, int64_t k)
      : kernels_(kernels), list_(list), remaining_(remaining), k_(k) {}

  // Finds the k-th smallest key of the `remaining` that take part, 1 <= k <= remaining, and cuts each tensor there.
  esp_status cut(esp_prune_cut* cuts) {
    const int64_t budget = (int64_t{1} << 20) + list_.bytes / 50 -
                           (list_.chunks() - list_.count) * static_cast<int64_t>(sizeof(ChunkCounts));
    capacity_ = budget / 4 < list_.elements() ? budget / 4 : list_.elements();
    counts_ = make<ChunkCounts>(list_.chunks());
    if (!counts_ || !keys_.allocate(capacity_)) return no_memory();

    Bracket bracket = {-1, prune_nan_key + 1};
    if (remaining_ > collect_all || remaining_ > capacity_) {
      if (esp_status status = sampled(&bracket)) return status;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
      collect(bracket);
      Range rest;
      if (at(bracket, &rest)) return divide(bracket, cuts);
      const Range found = narrow(kernels_, list_, k_, rest, capacity_);
      bracket = found.span == 1 ? Bracket{found.low, found.low} : Bracket{found.low - 1, found.low + found.span};
    }
    return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: the weights changed while they were read");
  }

  int32_t key() const { return key_; }

 private:
  // Order statistics of a sample, as far to both sides of k as the sample's own scatter asks for.
  esp_status sampled(Bracket* bracket) {
    const int64_t lines = esp::prune_sample_lines(list_.elements(), capacity_);
    int64_t taken = 0;
    list_.each(lines / line_task, [&](int64_t task) {
      struct Line {
        const esp_prune_tensor* tensor;
        int64_t element;
      } at[line_task];
      for (int64_t j = 0; j < line_task; j++) {
        int64_t i = esp::prune_sample_position(list_.elements(), lines, task * line_task + j);
        const esp_prune_tensor& tensor = list_.tensors[list_.tensor_of(&i)];
        at[j] = {&tensor, i / 16 * 16};
        __builtin_prefetch(static_cast<const char*>(tensor.weights) + at[j].element * esp::size_of(tensor.dtype));
      }
      int64_t here = 0;
      for (int64_t j = 0; j < line_task; j++) {
        // Every eighth line goes to the first eighth, which is a sample of its own.
        const int64_t line = task * line_task + j, slot = line % subsample * (lines / subsample) + line / subsample;
        const esp_prune_tensor& tensor = *at[j].tensor;
        here += kernels_->sample(tensor.dtype, {tensor.weights, tensor.mask_in, tensor.n}, at[j].element,
                                 keys_.get() + slot * 16);
      }
      __atomic_fetch_add(&taken, here, __ATOMIC_RELAXED);
    });
    if (taken == 0) return ESP_OK;  // almost nothing remains: every key is in the bracket

    const double fraction = static_cast<double>(taken) / static_cast<double>(remaining_);
    const double rank = static_cast<double>(k_) * fraction;
    double half;
    if (esp_status status = scatter(lines / subsample, rank / subsample, &half)) return status;
    half *= deviations;
    // Never more than three quarters of the scratch memory.
    const double most = 0.375 * static_cast<double>(capacity_) * fraction;
    if (half > most) half = most;
    if (rank - half >= 1) {
      if (esp_status status = sampled_key(lines, rank - half, &bracket->low)) return status;
    }
    if (rank + half <= static_cast<double>(taken)) {
      if (esp_status status = sampled_key(lines, std::ceil(rank + half), &bracket->high)) return status;
    }
    return ESP_OK;
  }

  // The key of that rank (from 1) among the first lines of the sample.
  esp_status sampled_key(int64_t lines, double rank, int32_t* key) const {
    const esp_prune_tensor tensor = {keys_.get(), nullptr, nullptr, nullptr, lines * 16, 0, 0, ESP_F32};
    List sample;
    if (esp_status status = sample.set(&tensor, 1)) return status;
    *key = narrow(kernels_, sample, static_cast<int64_t>(rank), {0, prune_nan_key + 1, 0, lines * 16}, 0).low;
    return ESP_OK;
  }

  // The standard deviation of how many sampled keys lie below that rank, measured from line to line on a subsample:
  // neighbours are alike in real weights, so that 16 of them say less than 16 drawn apart. Keys that tie with the rank's
  // count once as below, once as above it.
  esp_status scatter(int64_t lines, double rank, double* deviation) const {
    const double last = static_cast<double>(lines * 16);
    int32_t centre = 0;
    if (esp_status status = sampled_key(lines, rank < 1 ? 1 : rank > last ? last : rank, &centre)) return status;
    double sums[2] = {}, squares[2] = {};
    for (int64_t line = 0; line < lines; line++) {
      const int32_t* keys = keys_.get() + line * 16;
      int32_t counts[2] = {};
      for (int j = 0; j < 16; j++) {
        counts[0] += keys[j] < centre;
        counts[1] += keys[j] <= centre;
      }
      for (int side = 0; side < 2; side++) {
        sums[side] += counts[side];
        squares[side] += counts[side] * counts[side];
      }
    }
    double variance = 0;
    for (int side = 0; side < 2; side++) {
      const double v = squares[side] - sums[side] * sums[side] / static_cast<double>(lines);
      if (v > variance) variance = v;
    }
    *deviation = std::sqrt(variance * subsample) + 1;
    return ESP_OK;
  }

  void collect(const Bracket& bracket) {
    int64_t cursor = 0;
    list_.each_chunk(false, [&](int64_t i) {
      alignas(64) int32_t own[chunk_elements + 16];
      const List::Chunk chunk = list_.chunk(i);
      const esp::PruneCounts found = kernels_->collect(chunk.dtype, chunk.block, bracket.low, bracket.high, own);
      const int64_t offset = __atomic_fetch_add(&cursor, found.inside, __ATOMIC_RELAXED);
      if (offset + found.inside <= capacity_) {
        std::memcpy(keys_.get() + offset, own, static_cast<size_t>(found.inside) * sizeof *own);
      }
      counts_[i] = {offset, static_cast<uint16_t>(found.below), static_cast<uint16_t>(found.at_low),
                    static_cast<uint16_t>(found.inside), static_cast<uint16_t>(found.at_high)};
    });
    below_ = at_low_ = inside_ = at_high_ = 0;
    for (int64_t i = 0; i < list_.chunks(); i++) {
      below_ += counts_[i].below;
      at_low_ += counts_[i].at_low;
      inside_ += counts_[i].inside;
      at_high_ += counts_[i].at_high;
    }
    if (bracket.low == bracket.high) at_high_ = 0;
  }

  // True where the pass settles the key; else the range that must hold it.
  bool at(const Bracket& bracket, Range* rest) {
    if (k_ <= below_) {
      *rest = {0, bracket.low, 0, below_};
      return false;
    }
    int64_t before = below_;
    if (k_ <= before + at_low_) return settle(bracket.low, before, at_low_);
    before += at_low_;
    if (k_ <= before + inside_) {
      Range range = {bracket.low + 1, bracket.high - bracket.low - 1, before, inside_};
      if (inside_ > capacity_) {
        *rest = range;
        return false;
      }
      const esp_prune_tensor tensor = {keys_.get(), nullptr, nullptr, nullptr, inside_, 0, 0, ESP_F32};
      List collected;
      if (collected.set(&tensor, 1)) return false;
      range = narrow(kernels_, collected, k_, range, 0);
      return settle(range.low, range.below, range.count);
    }
    before += inside_;
    if (k_ <= before + at_high_) return settle(bracket.high, before, at_high_);
    before += at_high_;
    *rest = {bracket.high + 1, prune_nan_key - bracket.high, before, remaining_ - before};
    return false;
  }

  bool settle(int32_t key, int64_t below, int64_t ties) {
    key_ = key;
    ties_ = ties;
    ties_to_prune_ = k_ - below;
    return true;
  }

  // Puts the division between the ties that are pruned and those that stay.
  esp_status divide(const Bracket& bracket, esp_prune_cut* cuts) const {
    int64_t tensor = list_.count, element = 0;
    if (ties_to_prune_ < ties_) {
      int64_t left = ties_to_prune_;
      for (int64_t i = 0; i < list_.chunks(); i++) {
        int64_t here = 0;
        if (key_ == bracket.low) {
          here = counts_[i].at_low;
        } else if (key_ == bracket.high) {
          here = counts_[i].at_high;
        } else {
          const int32_t* keys = keys_.get() + counts_[i].offset;
          for (int32_t j = 0; j < counts_[i].inside; j++) here += keys[j] == key_;
        }
        if (left <= here) {
          const List::Chunk chunk = list_.chunk(i);
          tensor = chunk.tensor;
          element = chunk.start + kernels_->past_nth(chunk.dtype, chunk.block, key_, left);
          break;
        }
        left -= here;
      }
    }
    for (int64_t t = 0; t < list_.count; t++) {
      cuts[t] = {t < tensor ? list_.tensors[t].n : t == tensor ? element : 0, key_};
    }
    return ESP_OK;
  }

  const Kernels* kernels_;
  const List& list_;
  const int64_t remaining_, k_;
  int64_t capacity_ = 0;
  std::unique_ptr<ChunkCounts[]> counts_;
  Keys keys_;
  int64_t below_ = 0, at_low_ = 0, inside_ = 0, at_high_ = 0;
  int32_t key_ = 0;
  int64_t ties_ = 0, ties_to_prune_ = 0;
};

float threshold_of(int32_t key) {
  if (key == prune_nan_key) return std::numeric_limits<float>::quiet_NaN();
  float value;
  std::memcpy(&value, &key, sizeof value);
  return value;
}

int32_t key_of(float threshold) {
  int32_t key;
  const float magnitude = std::fabs(threshold);
  std::memcpy(&key, &magnitude, sizeof key);
  return key;
}

// Half to even; x >= 0.
int64_t rounded(double x) {
  const double down = std::floor(x), rest = x - down;
  const int64_t whole = static_cast<int64_t>(down);
  return rest < 0.5 ? whole : rest > 0.5 ? whole + 1 : whole + (whole & 1);
}

// How many of the `remaining` of n weights the rule prunes.
esp_status amount_of(const esp_prune_rule& rule, int64_t n, int64_t remaining, int64_t* k) {
  if (rule.kind == ESP_PRUNE_COUNT) {
    if (rule.count > remaining) {
      return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: %lld weights to prune, %lld remain",
                       static_cast<long long>(rule.count), static_cast<long long>(remaining));
    }
    *k = rule.count;
    return ESP_OK;
  }
  const bool absolute = rule.kind == ESP_PRUNE_SPARSITY;
  const int64_t share = rounded(rule.amount * static_cast<double>(absolute ? n : remaining));
  *k = absolute ? share - (n - remaining) : share;
  // Beyond 2^53 weights the product can round past the end.
  *k = *k < 0 ? 0 : *k > remaining ? remaining : *k;
  return ESP_OK;
}

int64_t remaining_of(const Kernels* kernels, const esp_prune_tensor& tensor) {
  return tensor.mask_in == nullptr ? tensor.n : kernels->count_bits(tensor.mask_in, tensor.n);
}

// Cuts for one scope: the whole list, or one tensor.
esp_status select_scope(const Kernels* kernels, const esp_prune_tensor* tensors, int64_t count,
                        const esp_prune_rule& rule, esp_prune_cut* cuts, int64_t* pruned, float* threshold) {
  List list;
  if (esp_status status = list.set(tensors, count)) return status;
  int64_t remaining = 0, k = 0;
  list.each(count, [&](int64_t t) {
    __atomic_fetch_add(&remaining, remaining_of(kernels, tensors[t]), __ATOMIC_RELAXED);
  });
  if (esp_status status = amount_of(rule, list.elements(), remaining, &k)) return status;
  *pruned += list.elements() - remaining + k;
  *threshold = 0;
  if (k == 0) {
    for (int64_t t = 0; t < count; t++) cuts[t] = {0, 0};
    return ESP_OK;
  }
  Selection selection(kernels, list, remaining, k);
  if (esp_status status = selection.cut(cuts)) return status;
  *threshold = threshold_of(selection.key());
  return ESP_OK;
}

esp_status select_cuts(const Kernels* kernels, const esp_prune_tensor* tensors, int64_t count,
                       const esp_prune_rule& rule, esp_prune_cut* cuts, esp_prune_result* result) {
  *result = {0, 0, 0};
  for (int64_t t = 0; t < count; t++) result->total += tensors[t].n;
  if (rule.kind == ESP_PRUNE_THRESHOLD) {
    for (int64_t t = 0; t < count; t++) cuts[t] = {0, key_of(rule.threshold)};
    result->pruned = -1;
    result->threshold = rule.threshold;
    return ESP_OK;
  }
  if (rule.scope == ESP_PRUNE_GLOBAL) {
    return select_scope(kernels, tensors, count, rule, cuts, &result->pruned, &result->threshold);
  }
  for (int64_t t = 0; t < count; t++) {
    float own;
    if (esp_status status = select_scope(kernels, tensors + t, 1, rule, cuts + t, &result->pruned, &own)) return status;
  }
  result->threshold = std::numeric_limits<float>::quiet_NaN();
  return ESP_OK;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

esp_status apply_cuts(const Kernels* kernels, const esp_prune_tensor* tensors, const esp_prune_cut* cuts, int64_t count,
                      int64_t* pruned) {
  List list;
  if (esp_status status = list.set(tensors, count)) return status;
  for (int64_t t = 0; t < count; t++) pruned[t] = tensors[t].n;
  const bool beyond_cache = list.bytes > esp::cache_bytes;
  list.each_chunk(true, [&](int64_t i) {
    const List::Chunk chunk = list.chunk(i);
    const esp_prune_tensor& tensor = tensors[chunk.tensor];
    const int64_t size = esp::size_of(tensor.dtype);
    char* out = tensor.out == nullptr ? nullptr : static_cast<char*>(tensor.out) + chunk.start * size;
    const bool stream = beyond_cache && tensor.out != tensor.weights && aligned(out);
    const esp_prune_cut& cut = cuts[chunk.tensor];
    const int64_t ties = cut.ties - chunk.start;
    const int64_t kept = kernels->apply(
        tensor.dtype, chunk.block,
        {out, tensor.mask_out == nullptr ? nullptr : tensor.mask_out + chunk.start / 8, stream}, cut.key,
        ties < 0 ? 0 : ties < chunk.block.n ? ties : chunk.block.n);
    __atomic_fetch_sub(&pruned[chunk.tensor], kept, __ATOMIC_RELAXED);
  });
  return ESP_OK;
}

// Tasks are whole groups that start at a byte of the masks.
void apply_pattern(const Kernels* kernels, const esp_prune_tensor& tensor, const esp_prune_rule& rule, int64_t* pruned) {
  *pruned = tensor.n;
  if (tensor.n == 0) return;
  const int64_t size = esp::size_of(tensor.dtype), group = rule.group * tensor.inner;
  int64_t step = group;
  while (step % 8 != 0) step *= 2;
  if (step < chunk_elements) step *= chunk_elements / step;
  if (tensor.mask_out != nullptr && tensor.mask_out != tensor.mask_in) {
    tensor.mask_out[bits_bytes(tensor.n) - 1] = 0;
  } else if (tensor.mask_out != nullptr && tensor.n % 8 != 0) {
    uint8_t* last = tensor.mask_out + tensor.n / 8;
    *last = static_cast<uint8_t>(*last & ((1u << (tensor.n % 8)) - 1));
  }
  const auto run = [&](int64_t i) {
    const int64_t start = i * step, n = tensor.n - start < step ? tensor.n - start : step;
    const int64_t kept = kernels->pattern(
        tensor.dtype,
        {static_cast<const char*>(tensor.weights) + start * size,
         tensor.mask_in == nullptr ? nullptr : tensor.mask_in + start / 8, n},
        {tensor.out == nullptr ? nullptr : static_cast<char*>(tensor.out) + start * size,
         tensor.mask_out == nullptr ? nullptr : tensor.mask_out + start / 8, false},
        {tensor.inner, rule.keep, rule.group});
    __atomic_fetch_sub(pruned, kept, __ATOMIC_RELAXED);
  };
  esp::parallel_for((tensor.n + step - 1) / step, tensor.n * size, run);
}

}  // namespace

esp_status esp_magnitude_prune_select(const esp_prune_tensor* tensors, int64_t count, const esp_prune_rule* rule,
                                      esp_prune_cut* cuts, esp_prune_result* result) {
  const Kernels* kernels;
  if (esp_status status = esp::select(esp::magnitude_prune_variants, &kernels)) return status;
  if (esp_status status = esp::check_prune_rule(rule)) return status;
  if (esp_status status = esp::check_prune_list(tensors, count)) return status;
  if (rule->kind == ESP_PRUNE_PATTERN) {
    return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: a pattern needs no selection");
  }
  if (result == nullptr || (cuts == nullptr && count > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: cuts or result is NULL");
  }
  return select_cuts(kernels, tensors, count, *rule, cuts, result);
}

esp_status esp_magnitude_prune_apply(const esp_prune_tensor* tensors, const esp_prune_cut* cuts, int64_t count,
                                     int64_t* pruned) {
  const Kernels* kernels;
  if (esp_status status = esp::select(esp::magnitude_prune_variants, &kernels)) return status;
  if (esp_status status = esp::check_prune_list(tensors, count)) return status;
  if (cuts == nullptr && count > 0) return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: cuts is NULL");
  for (int64_t t = 0; t < count; t++) {
    if (cuts[t].key < 0 || cuts[t].key > prune_nan_key) {
      return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: cut %lld has the key %d", static_cast<long long>(t),
                       cuts[t].key);
    }
  }
  std::unique_ptr<int64_t[]> own;
  if (pruned == nullptr) {
    own = make<int64_t>(count);
    if (!own) return no_memory();
    pruned = own.get();
  }
  return apply_cuts(kernels, tensors, cuts, count, pruned);
}

esp_status esp_magnitude_prune(const esp_prune_tensor* tensors, int64_t count, const esp_prune_rule* rule,
                               esp_prune_result* result, int64_t* pruned) {
  const Kernels* kernels;
  if (esp_status status = esp::select(esp::magnitude_prune_variants, &kernels)) return status;
  if (esp_status status = esp::check_prune_rule(rule)) return status;
  if (esp_status status = esp::check_prune_list(tensors, count)) return status;
  if (result == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: result is NULL");
  std::unique_ptr<int64_t[]> own;
  if (pruned == nullptr) {
    own = make<int64_t>(count);
    if (!own) return no_memory();
    pruned = own.get();
  }
  if (rule->kind == ESP_PRUNE_PATTERN) {
    if (esp_status status = esp::check_prune_pattern(tensors, count, *rule)) return status;
    *result = {0, 0, std::numeric_limits<float>::quiet_NaN()};
    for (int64_t t = 0; t < count; t++) {
      apply_pattern(kernels, tensors[t], *rule, &pruned[t]);
      result->total += tensors[t].n;
    }
  } else {
    std::unique_ptr<esp_prune_cut[]> cuts = make<esp_prune_cut>(count);
    if (!cuts) return no_memory();
    if (esp_status status = select_cuts(kernels, tensors, count, *rule, cuts.get(), result)) return status;
    if (esp_status status = apply_cuts(kernels, tensors, cuts.get(), count, pruned)) return status;
  }
  result->pruned = 0;
  for (int64_t t = 0; t < count; t++) result->pruned += pruned[t];
  return ESP_OK;
}
