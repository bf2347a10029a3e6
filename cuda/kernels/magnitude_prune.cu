// magnitude_prune: which weights of a list are the smallest, found without sorting or copying them, and
// zeroed.
//
// The key of a weight is the bits of |w| as F32, NaNs clamped to one key above infinity: keys order as
// magnitudes do. Selection (magnitude_prune_select.cuh) leaves a key and an element in each scope; apply
// zeroes by these, or by a pattern, and writes the masks. Integers alone decide: results do not depend on the
// order of blocks.
//
// Bytes of a global prune in place, F32, 110 M weights: 440 MB collect, 440 + 440 apply, 14 the mask, 6 the
// collected keys, written once and read up to four times, 8 samples: 1.36 GB, 0.32 ms at 4.3 TB/s. 16-bit
// lists: three reads, one apply.
#include "magnitude_prune.h"

#include "device_limits.h"
#include "kernel.cuh"
#include "magnitude_prune_arguments.h"
#include "magnitude_prune_keys.cuh"
#include "magnitude_prune_select.cuh"
#include "status.h"

namespace {

// ---- patterns

// The weights of a pack that stay, each group whole in it: fewer than `keep` of its group are greater; of
// equals the later counts as greater.
template <int pack, int group>
__device__ __forceinline__ uint32_t pattern_of(const int32_t (&key)[pack], int keep) {
  uint32_t stay = 0;
#pragma unroll
  for (int a = 0; a < pack; a++) {
    int greater = 0;
#pragma unroll
    for (int b = a / group * group; b < a / group * group + group; b++) {
      if (b != a && key[b] != esp::prune_absent)
        greater += key[b] > key[a] || (key[b] == key[a] && b > a) ? 1 : 0;
    }
    if (key[a] != esp::prune_absent && greater < keep) stay |= 1u << a;
  }
  return stay;
}

// Any group: one bit a weight, decided from memory that nothing changes meanwhile. Neighbouring lanes have
// neighbouring columns; what their groups share is in the nearest caches.
__global__ void __launch_bounds__(threads) prune_pattern_kernel(Prune p, Rule rule) {
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  uint8_t* field = p.decisions;
  int32_t of = 0;
  for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !walk.ends();) {
    const PruneChunk chunk = walk.take();
    for (; of < chunk.tensor; of++) field += (p.tensors[of].n + 31) / 32 * 4;
    const esp_prune_tensor t = p.tensors[chunk.tensor];
    const int64_t start = static_cast<int64_t>(chunk.index) * esp::prune_chunk;
    for (int64_t i = start + threadIdx.x; i < start + esp::prune_chunk; i += threads) {
      bool stays = false;
      if (i < t.n) {
        const int32_t own = key_at(t, i);
        const int64_t place = i / t.inner % rule.group, first = i - place * t.inner;
        int greater = 0;
        for (int64_t j = 0; j < rule.group && own != esp::prune_absent; j++) {
          const int32_t other = key_at(t, first + j * t.inner);
          if (other != esp::prune_absent && j != place)
            greater += other > own || (other == own && j > place) ? 1 : 0;
        }
        stays = own != esp::prune_absent && greater < rule.keep;
      }
      const uint32_t word = __ballot_sync(esp::all_lanes, stays);
      if (esp::lane_index() == 0 && i < t.n) reinterpret_cast<uint32_t*>(field)[i / 32] = word;
    }
  }
}

// ---- apply

// The bits of packs of n from element i on, 0 from `end` on; lanes with half a byte join. Called by whole
// warps.
template <int n>
__device__ __forceinline__ void store_bits(uint8_t* field, int i, int end, uint32_t bits) {
  if (n == 4) bits |= __shfl_down_sync(esp::all_lanes, bits, 1) << 4;
  __syncwarp();  // the earlier mask may be the same memory, and has been read
  if (i >= end || (n == 4 && esp::lane_index() % 2 != 0)) return;
  ESP_GLOBAL(field);
  field[i / 8] = static_cast<uint8_t>(bits);
}

// Packs that a thread of apply has at once: what registers allow. A multiprocessor of 12.0 needs the fewest
// bytes on their way, and would spill with four.
template <bool by_pattern>
constexpr int packs_at_once() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  return 2;
#else
  return by_pattern ? 2 : 4;
#endif
}

// Where a tensor is cut, see esp_prune_cut; or by decisions, or by a pattern within a pack.
struct Cut {
  int32_t key, group, keep;
  int64_t ties;
  const uint8_t* decisions;
};

template <class T, bool by_pattern>
__device__ __forceinline__ uint32_t apply_chunk(const esp_prune_tensor& t, int64_t start, const Cut& cut) {
  constexpr int pack = Turns<T>::pack, at_once = packs_at_once<by_pattern>();
  const T* const weights = static_cast<const T*>(t.weights) + start;
  T* const out = static_cast<T*>(t.out) + (t.out == nullptr ? 0 : start);
  const uint8_t *const mask = bits_from(t.mask_in, start), *const decisions = bits_from(cut.decisions, start);
  uint8_t* const mask_out = bits_from(t.mask_out, start);
  ESP_GLOBAL(weights);
  const bool whole = esp::is_aligned(weights, 16), whole_out = esp::is_aligned(out, 16),
             in_place = out == weights;
  const int end = chunk_end(t, start);
  const int ties = static_cast<int>(cut.ties < start ? 0 : cut.ties - start < end ? cut.ties - start : end);
  uint32_t pruned = 0;
#pragma unroll 1
  for (int turn = 0; turn < Turns<T>::count; turn += at_once) {
    Pack<T, pack> x[at_once];
    uint32_t part[at_once];
    esp::load_packs<pack>(weights, Turns<T>::element(turn), threads * pack, end, whole, x);
#pragma unroll
    for (int k = 0; k < at_once; k++) part[k] = byte_at(mask, Turns<T>::element(turn + k), end);
#pragma unroll
    for (int k = 0; k < at_once; k++) {
      const int i = Turns<T>::element(turn + k);
      const uint32_t valid = valid_bits<pack>(i, end), taking = bits_of<pack>(part[k], i) & valid;
      uint32_t keep = 0;
      // Before element `ties` equals go too: compared with the key after it.
      const int before = ties - i;
      if (!by_pattern && taking == (1u << pack) - 1 && (before <= 0 || before >= pack)) {  // most packs
        const int32_t least = cut.key + (before > 0 ? 1 : 0);
        const uint32_t bits = least <= esp::prune_nan_key ? static_cast<uint32_t>(least) : 0x80000000;
#pragma unroll
        for (int j = 0; j < pack; j++) {
          const bool stays = (__float_as_uint(esp::to_float(x[k].at[j])) & 0x7fffffff) >= bits;
          if (stays) keep |= 1u << j;
          if (!stays) x[k].at[j] = T{};
        }
      } else {
        if (by_pattern && decisions != nullptr) {
          keep = i < end ? bits_of<pack>(byte_at(decisions, i, end), i) : 0;
        } else {
          int32_t key[pack];
          keys_of<T>(x[k], taking, key);
          if (by_pattern) {
            keep = cut.group == 1   ? pattern_of<pack, 1>(key, cut.keep)
                   : cut.group == 2 ? pattern_of<pack, 2>(key, cut.keep)
                   : cut.group == 4 ? pattern_of<pack, 4>(key, cut.keep)
                                    : pattern_of<pack, pack>(key, cut.keep);
          } else {
#pragma unroll
            for (int j = 0; j < pack; j++) {
              if (key[j] != esp::prune_absent && key[j] >= cut.key + (j < before ? 1 : 0)) keep |= 1u << j;
            }
          }
        }
        keep &= valid;
#pragma unroll
        for (int j = 0; j < pack; j++) {
          if ((keep >> j & 1) == 0) x[k].at[j] = T{};
        }
      }
      pruned += static_cast<uint32_t>(__popc(valid ^ keep));
      if (out != nullptr && valid != 0 && !(in_place && keep == valid)) {
        ESP_GLOBAL(out);
        esp::store_pack(out, i, end, whole_out, x[k]);
      }
      if (mask_out != nullptr) store_bits<pack>(mask_out, i, end, keep);
    }
  }
  return pruned;
}

__device__ void finish(const Prune& p, const Rule& rule) {
  uint32_t threshold = 0x7fc00000;  // there is no one threshold
  if (p.kind == ESP_PRUNE_THRESHOLD) {
    threshold = rule.threshold;
  } else if (p.kind != ESP_PRUNE_PATTERN && !p.by_tensor) {
    const PruneScope& scope = p.scopes[0];
    threshold = scope.k == 0                                             ? 0
                : scope.low == static_cast<uint32_t>(esp::prune_nan_key) ? 0x7fc00000
                                                                         : scope.low;
  }
  const int64_t pruned = p.state->refused != 0 ? -1 : static_cast<int64_t>(p.state->pruned);
  *rule.result = {p.elements, pruned, __uint_as_float(threshold)};
  p.state->pruned = 0;
  p.state->refused = 0;
}

// Adds what this thread has pruned of a tensor. Called by whole warps.
__device__ __forceinline__ void add_pruned(const Prune& p, const Rule& rule, int32_t tensor,
                                           unsigned long long pruned) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) pruned += __shfl_xor_sync(esp::all_lanes, pruned, apart);
  if (esp::lane_index() != 0 || pruned == 0) return;
  atomicAdd(&p.state->pruned, pruned);
  if (rule.pruned != nullptr) atomicAdd(reinterpret_cast<unsigned long long*>(rule.pruned) + tensor, pruned);
}

template <bool by_pattern>
__global__ void __launch_bounds__(threads, esp::prune_blocks) prune_apply_kernel(Prune p, Rule rule) {
  esp::wait_for_kernel_before();
  const uint8_t* field = p.decisions;
  int32_t of = 0, counted = 0;  // the tensor that `pruned` are of
  unsigned long long pruned = 0;
  const bool refused = p.state->refused != 0;
  for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !refused && !walk.ends();) {
    const PruneChunk chunk = walk.take();
    const esp_prune_tensor& t = p.tensors[chunk.tensor];
    Cut cut = {};
    if (by_pattern) {
      cut.group = rule.group;
      cut.keep = rule.keep;
      if (p.decisions != nullptr) {
        for (; of < chunk.tensor; of++) field += (p.tensors[of].n + 31) / 32 * 4;
        cut.decisions = field;
      }
    } else {
      const PruneScope& scope = p.scopes[p.by_tensor ? chunk.tensor : 0];
      cut.key = static_cast<int32_t>(scope.low);
      cut.ties = chunk.tensor < scope.tie_tensor    ? t.n
                 : chunk.tensor == scope.tie_tensor ? scope.tie_element
                                                    : 0;
    }
    const int64_t start = static_cast<int64_t>(chunk.index) * esp::prune_chunk;
    if (chunk.tensor != counted) {
      add_pruned(p, rule, counted, pruned);
      counted = chunk.tensor;
      pruned = 0;
    }
    pruned += esp::with_dtype(
        t.dtype, [&](auto element) { return apply_chunk<decltype(element), by_pattern>(t, start, cut); });
  }
  add_pruned(p, rule, counted, pruned);
  if (!esp::is_last_block(&p.state->arrived, gridDim.x)) return;
  for (int32_t s = static_cast<int32_t>(threadIdx.x); s < p.scope_count; s += threads)
    p.scopes[s].remaining = 0;
  if (threadIdx.x == 0) finish(p, rule);
}

}  // namespace

esp_status esp_cuda_magnitude_prune(const esp_cuda_plan* plan, const void* table, void* workspace,
                                    const esp_prune_rule* rule, esp_prune_result* result, int64_t* pruned,
                                    void* stream) {
  if (plan == nullptr || workspace == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: plan, workspace or result is NULL");
  }
  if (esp_status status = esp::check_prune_rule(rule)) return status;
  const int64_t* const operation = plan->operation;
  const bool pattern = rule->kind == ESP_PRUNE_PATTERN,
             selects = !pattern && rule->kind != ESP_PRUNE_THRESHOLD;
  if (rule->kind != operation[esp::prune_kind] || (pattern && rule->group != operation[esp::prune_group]) ||
      (selects && rule->scope != operation[esp::prune_group])) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "magnitude_prune: the plan was made for another kind, scope or group");
  }
  const int64_t flags = operation[esp::prune_flags];
  Prune p = {};
  p.count = static_cast<int32_t>(operation[esp::prune_tensors]);
  p.chunk_count = static_cast<int32_t>(operation[esp::prune_chunks]);
  p.scope_count = static_cast<int32_t>(operation[esp::prune_scopes]);
  p.tensors = static_cast<const esp_prune_tensor*>(table);
  p.first_element = reinterpret_cast<const int64_t*>(p.tensors + p.count);
  p.first_chunk = p.first_element + p.count + 1;
  p.chunks = reinterpret_cast<const PruneChunk*>(p.first_chunk + p.count + 1);
  p.sampled = (flags & esp::prune_samples_flag) != 0;
  p.state = static_cast<PruneState*>(workspace);
  p.scopes = reinterpret_cast<PruneScope*>(p.state + 1);
  p.histograms = reinterpret_cast<unsigned long long*>(p.scopes + p.scope_count);
  const int64_t histograms = selects ? p.scope_count + (p.sampled ? 1 : 0) : 0;
  p.records = reinterpret_cast<PruneRecord*>(p.histograms + histograms * bins);
  p.keys = reinterpret_cast<int32_t*>(p.records + (selects ? p.chunk_count : 0));
  p.capacity = static_cast<uint32_t>(operation[esp::prune_capacity]);
  p.decisions = (flags & esp::prune_decides) != 0 ? reinterpret_cast<uint8_t*>(p.keys + p.capacity) : nullptr;
  p.elements = operation[esp::prune_decisions];
  p.granularity = static_cast<int32_t>(flags >> esp::prune_granularity_shift);
  p.kind = rule->kind;
  p.by_tensor = selects && rule->scope == ESP_PRUNE_TENSOR;
  p.masked = selects && (flags & esp::prune_masked) != 0;
  const Rule now = {esp::prune_amount(rule->amount),
                    rule->count,
                    static_cast<int32_t>(esp::prune_bits(std::fabs(rule->threshold))),
                    rule->keep,
                    rule->group,
                    esp::prune_bits(rule->threshold),
                    result,
                    pruned};

  // As many blocks as run at once: more would come when most multiprocessors are done, and each block costs
  // its part of a histogram.
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;
  const auto together = [&](int of_a_multiprocessor) {
    const int64_t most = int64_t{limits.multiprocessors} * of_a_multiprocessor;
    return p.chunk_count < 1 ? 1 : p.chunk_count < most ? p.chunk_count : most;
  };
  const int64_t blocks = together(esp::prune_blocks), collecting = together(esp::prune_collect_blocks);
  esp::Kernels kernels(limits, stream);
  const auto run = [&](const char* what, auto kernel, int64_t grid, auto... more) {
    return kernels.launch(what, kernel, grid, threads, p, more...);
  };
  if (esp_status status = run("magnitude_prune: begin", prune_begin_kernel, p.masked ? blocks : 1, now))
    return status;
  if (p.sampled) {
    constexpr int64_t sample_blocks = esp::prune_samples / threads / 2;
    if (esp_status status = run("magnitude_prune: sample", prune_sample_kernel, sample_blocks)) return status;
    if (esp_status status = run("magnitude_prune: bracket", prune_bracket_kernel, sample_blocks))
      return status;
    if (esp_status status = run("magnitude_prune: collect", prune_collect_kernel, collecting)) return status;
  }
  for (int pass = 0; selects && pass < 3; pass++) {
    if (esp_status status = run("magnitude_prune: narrow", prune_narrow_kernel, blocks)) return status;
    if (!p.by_tensor || p.count == 0) continue;
    if (esp_status status = run("magnitude_prune: pick", prune_pick_kernel, p.count)) return status;
  }
  if (selects) {
    if (esp_status status = run("magnitude_prune: ties", prune_ties_kernel, collecting)) return status;
  }
  if (p.by_tensor && p.count > 0) {
    if (esp_status status = run("magnitude_prune: divide", prune_divide_kernel, p.count)) return status;
  }
  if (p.decisions != nullptr) {
    if (esp_status status = run("magnitude_prune: pattern", prune_pattern_kernel, blocks, now)) return status;
  }
  return pattern ? run("magnitude_prune: apply", prune_apply_kernel<true>, blocks, now)
                 : run("magnitude_prune: apply", prune_apply_kernel<false>, blocks, now);
}
