// magnitude_prune: which weights of a list are the smallest, found without sorting or copying them, and
// zeroed.
//
// The key of a weight is the bits of |w| as F32, NaNs clamped to one key above infinity: keys order as
// magnitudes do.
// 1. begin: counts what remains under an earlier mask; k of each scope (the list, or each tensor).
// 2. sample (F32 lists): 131072 keys at pseudo-random places; two histograms of them give a bracket that
// holds the k-th key
//    but for one list in 10^5.
// 3. collect: one pass counts what lies below the bracket and at its two ends, and collects what lies inside
// (about 1.3 %).
// 4. narrow: three histograms of 2048 bins find the key among the collected; or among all weights, where the
// bracket missed or
//    held too much, where 16-bit keys tie by the thousand, and for scopes of a tensor. Each looks whether it
//    is still needed.
// 5. ties: where not all weights with the key are pruned, they are counted a chunk, and the element found
// that divides them.
// 6. apply: zeroes by key and element, and writes the masks.
// Integers alone decide: results do not depend on the order of blocks.
// Bytes of a global prune in place, F32, 110 M weights: 440 MB collect, 440 + 440 apply, 14 the mask, 6 the
// collected keys, written once and read up to four times, 8 samples: 1.36 GB, 0.32 ms at 4.3 TB/s. 16-bit
// lists: three reads, one apply.
#include "magnitude_prune.h"

#include "device_limits.h"
#include "kernel.cuh"
#include "magnitude_prune_arguments.h"
#include "status.h"

namespace {

using esp::bf16;
using esp::f16;
using esp::Pack;
using esp::PruneAmount;
using esp::PruneChunk;
using esp::PruneRecord;
using esp::PruneScope;
using esp::PruneState;

constexpr int threads = esp::prune_threads, bins = esp::prune_bins;
constexpr int per_thread = bins / threads;

// Everything that kernels are given.
struct Prune {
  const esp_prune_tensor* tensors;
  const int64_t* first_element;
  const int64_t* first_chunk;
  const PruneChunk* chunks;
  PruneState* state;
  PruneScope* scopes;
  unsigned long long* histograms;  // one a scope; of the sample, two
  PruneRecord* records;
  int32_t* keys;       // collected, or sampled
  uint8_t* decisions;  // of a pattern, a word-aligned field a tensor; or nullptr
  int64_t elements;
  int32_t count, chunk_count, scope_count;
  uint32_t capacity;
  int32_t granularity;
  int32_t kind;
  bool by_tensor, masked, sampled;
};

// What to do this time.
struct Rule {
  PruneAmount amount;
  int64_t count;
  int32_t key, keep, group;
  uint32_t threshold;  // bits
  esp_prune_result* result;
  int64_t* pruned;
};

__device__ __forceinline__ int32_t key_of(float x) {
  const int32_t magnitude = __float_as_int(x) & 0x7fffffff;
  return magnitude < esp::prune_nan_key ? magnitude : esp::prune_nan_key;
}

// The byte that holds the bit of element i, as it is: what is taken out of it is waited for.
__device__ __forceinline__ uint32_t byte_at(const uint8_t* field, int i, int end) {
  if (field == nullptr || i >= end) return 0xff;
  const uint8_t* const p = field + i / 8;
  ESP_GLOBAL(p);
  return *p;
}
// n bits of such a byte from element i on, a multiple of n; n = 4 or 8. Those beyond the field are rubbish.
template <int n>
__device__ __forceinline__ uint32_t bits_of(uint32_t byte, int i) {
  return byte >> (i & 7) & ((1u << n) - 1);
}

// The packs that a thread has in a chunk.
template <class T>
struct Turns {
  static constexpr int pack = 16 / sizeof(T), count = esp::prune_chunk / (threads * pack);
  static __device__ __forceinline__ int element(int turn) {
    return (turn * threads + static_cast<int>(threadIdx.x)) * pack;
  }
};
// Where a field of bits has those of a chunk; nullptr stays.
template <class Byte>
__device__ __forceinline__ Byte* bits_from(Byte* field, int64_t start) {
  return field == nullptr ? nullptr : field + start / 8;
}
__device__ __forceinline__ int chunk_end(const esp_prune_tensor& t, int64_t start) {
  return static_cast<int>(t.n - start < esp::prune_chunk ? t.n - start : esp::prune_chunk);
}

// Which of the elements i .. i+n-1 are before `end`, as bits.
template <int n>
__device__ __forceinline__ uint32_t valid_bits(int i, int end) {
  return i + n <= end ? (1u << n) - 1 : i < end ? (1u << (end - i)) - 1 : 0;
}

// Keys of a pack, prune_absent for what takes no part: its bit in `taking` is 0.
template <class T>
__device__ __forceinline__ void keys_of(const Pack<T, 16 / sizeof(T)>& x, uint32_t taking, int32_t (&key)[16 / sizeof(T)]) {
  constexpr int n = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int j = 0; j < n; j++) key[j] = key_of(esp::to_float(x.at[j]));
  if (taking == (1u << n) - 1) return;
#pragma unroll
  for (int j = 0; j < n; j++) {
    if ((taking >> j & 1) == 0) key[j] = esp::prune_absent;
  }
}

// visit(key) for each weight of a chunk that takes part, and some that are absent.
template <class T, class Visit>
__device__ __forceinline__ void each_key_of(const esp_prune_tensor& t, int64_t start, Visit&& visit) {
  constexpr int pack = Turns<T>::pack;
  const T* const weights = static_cast<const T*>(t.weights) + start;
  const uint8_t* const mask = bits_from(t.mask_in, start);
  ESP_GLOBAL(weights);
  const bool whole = esp::is_aligned(weights, 16);
  const int end = chunk_end(t, start);
#pragma unroll 1
  for (int turn = 0; turn < Turns<T>::count; turn += 4) {
    Pack<T, pack> x[4];
    uint32_t part[4];
    esp::load_packs<pack>(weights, Turns<T>::element(turn), threads * pack, end, whole, x);
#pragma unroll
    for (int k = 0; k < 4; k++) part[k] = byte_at(mask, Turns<T>::element(turn + k), end);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int i = Turns<T>::element(turn + k);
      int32_t key[pack];
      keys_of<T>(x[k], bits_of<pack>(part[k], i) & valid_bits<pack>(i, end), key);
#pragma unroll
      for (int j = 0; j < pack; j++) visit(key[j]);
    }
  }
}
template <class Visit>
__device__ __forceinline__ void each_key(const esp_prune_tensor& t, int64_t start, Visit&& visit) {
  if (t.dtype == ESP_BF16) {
    each_key_of<bf16>(t, start, visit);
  } else if (t.dtype == ESP_F16) {
    each_key_of<f16>(t, start, visit);
  } else {
    each_key_of<float>(t, start, visit);
  }
}

__device__ __forceinline__ int32_t key_at(const esp_prune_tensor& t, int64_t i) {
  if (t.mask_in != nullptr && (t.mask_in[i / 8] >> (i & 7) & 1) == 0) return esp::prune_absent;
  return key_of(t.dtype == ESP_BF16  ? esp::to_float(static_cast<const bf16*>(t.weights)[i])
                : t.dtype == ESP_F16 ? esp::to_float(static_cast<const f16*>(t.weights)[i])
                                     : static_cast<const float*>(t.weights)[i]);
}

// The sum of v over the threads before this one; *total over all. Called by all threads of a block.
__device__ __forceinline__ unsigned long long sum_before(unsigned long long v, unsigned long long* total) {
  ESP_SHARED(unsigned long long, warps, [threads / 32]);
  unsigned long long sum = v;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const unsigned long long other = __shfl_up_sync(esp::all_lanes, sum, apart);
    if (esp::lane_index() >= apart) sum += other;
  }
  __syncthreads();  // the call before has read
  if (esp::lane_index() == 31) warps[esp::warp_index()] = sum;
  __syncthreads();
  unsigned long long before = 0, all = 0;
  for (int w = 0; w < threads / 32; w++) {
    if (w < esp::warp_index()) before += warps[w];
    all += warps[w];
  }
  *total = all;
  return before + sum - v;
}

// The first of `bins` bins with which the sum from bin 0 on reaches `rank` (from 1), by the one thread that
// has it: found(bin, before). Called by all threads.
template <class Count, class Found>
__device__ __forceinline__ void find_bin(const Count* histogram, unsigned long long rank, Found&& found) {
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  unsigned long long mine = 0, total;
  for (int j = 0; j < per_thread; j++) mine += histogram[first + j];
  unsigned long long before = sum_before(mine, &total);
  if (before >= rank || before + mine < rank) return;
  int bin = first;
  while (before + histogram[bin] < rank) before += histogram[bin++];
  found(bin, before);
}

// ---- begin

__device__ void begin_scope(const Prune& p, const Rule& rule, int32_t s) {
  PruneScope& scope = p.scopes[s];
  const int64_t n = p.by_tensor ? p.tensors[s].n : p.elements;
  const int64_t remaining = p.masked ? static_cast<int64_t>(scope.remaining) : n;
  scope.remaining = static_cast<unsigned long long>(remaining);
  int64_t k = 0;
  if (p.kind == ESP_PRUNE_COUNT) {
    k = rule.count;
    if (k > remaining) p.state->refused = 1;
  } else if (p.kind == ESP_PRUNE_AMOUNT) {
    k = esp::prune_share(rule.amount, remaining);
  } else if (p.kind == ESP_PRUNE_SPARSITY) {
    k = esp::prune_share(rule.amount, n) - (n - remaining);
  }
  scope.k = k < 0 ? 0 : k > remaining ? remaining : k;
  scope.below = 0;
  scope.count = remaining;
  scope.low = p.kind == ESP_PRUNE_THRESHOLD ? static_cast<uint32_t>(rule.key) : 0;
  scope.span = scope.k == 0 ? 1 : static_cast<uint32_t>(esp::prune_nan_key) + 1;
  scope.source = esp::prune_from_weights;
  scope.tie_tensor = scope.k == 0 ? -1 : p.count;  // none, or all
  scope.tie_element = 0;
}

__global__ void __launch_bounds__(threads) prune_begin_kernel(Prune p, Rule rule) {
  esp::let_next_begin();
  if (p.masked) {
    for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !walk.ends();) {
      const PruneChunk chunk = walk.take();
      const esp_prune_tensor& t = p.tensors[chunk.tensor];
      const int64_t start = static_cast<int64_t>(chunk.index) * esp::prune_chunk;
      const int64_t end = start + esp::prune_chunk < t.n ? start + esp::prune_chunk : t.n;
      const int64_t i = start + threadIdx.x * 32;
      int kept = 0;
      if (i < end) {
        const uint32_t valid = i + 32 <= end ? 0xffffffffu : 0xffffffffu >> (i + 32 - end);
        kept = __popc(esp::bits_32(t.mask_in, i, end) & valid);
      }
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) kept += __shfl_xor_sync(esp::all_lanes, kept, apart);
      if (esp::lane_index() == 0 && kept > 0) {
        atomicAdd(&p.scopes[p.by_tensor ? chunk.tensor : 0].remaining, static_cast<unsigned long long>(kept));
      }
    }
  }
  if (!esp::is_last_block(&p.state->arrived, gridDim.x)) return;
  for (int32_t s = static_cast<int32_t>(threadIdx.x); s < p.scope_count; s += threads)
    begin_scope(p, rule, s);
  if (rule.pruned != nullptr) {
    for (int32_t t = static_cast<int32_t>(threadIdx.x); t < p.count; t += threads) rule.pruned[t] = 0;
  }
}

// ---- sample

// The flat element that a sample looks at: one in each of equal stretches.
__device__ __forceinline__ int64_t sample_position(int64_t elements, int64_t sample) {
  const int64_t stretch = elements / esp::prune_samples;
  unsigned long long mixed = (static_cast<unsigned long long>(sample) + 1) * 0x9e3779b97f4a7c15ull;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
  mixed ^= mixed >> 31;
  if (stretch == 0) return static_cast<int64_t>(mixed % static_cast<unsigned long long>(elements));
  return sample * stretch + static_cast<int64_t>(mixed % static_cast<unsigned long long>(stretch));
}

__device__ __forceinline__ uint32_t* coarse_bins(const Prune& p) {
  return reinterpret_cast<uint32_t*>(p.histograms);
}
__device__ __forceinline__ uint32_t* fine_bins(const Prune& p, int side) {
  return reinterpret_cast<uint32_t*>(p.histograms) + (1 + side) * bins;
}

// Four and a half standard deviations of a sample rank to both sides: 1 list in 10^5 has its k-th key
// outside.
__device__ void seek_ranks(const Prune& p) {
  PruneState& state = *p.state;
  const float taken = static_cast<float>(state.taken);
  const float part = static_cast<float>(p.scopes[0].k) / static_cast<float>(p.scopes[0].remaining);
  const float rank = part * taken, half = 4.5f * sqrtf(taken * part * (1 - part)) + 2;
  state.low = -1;
  state.high = esp::prune_nan_key + 1;
  state.low_bin = state.high_bin = bins;
  state.low_rank = floorf(rank - half);
  state.high_rank = ceilf(rank + half);
}

__global__ void __launch_bounds__(threads) prune_sample_kernel(Prune p) {
  ESP_SHARED(uint32_t, own, [bins]);
  esp::let_next_begin();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) own[b] = 0;
  esp::wait_for_kernel_before();
  if (p.state->refused != 0 || p.scopes[0].k == 0) return;
  __syncthreads();
  uint32_t taken = 0;
  for (int64_t s = blockIdx.x * threads + threadIdx.x; s < esp::prune_samples;
       s += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t at = sample_position(p.elements, s);
    int32_t low = 0, high = p.count - 1;
    while (low < high) {
      const int32_t middle = low + (high - low + 1) / 2;
      if (p.first_element[middle] <= at) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int32_t key = key_at(p.tensors[low], at - p.first_element[low]);
    p.keys[s] = key;
    if (key == esp::prune_absent) continue;
    taken++;
    atomicAdd(&own[key >> 20], 1u);
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) {
    if (own[b] != 0) atomicAdd(&coarse_bins(p)[b], own[b]);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) taken += __shfl_xor_sync(esp::all_lanes, taken, apart);
  if (esp::lane_index() == 0) atomicAdd(&p.state->taken, taken);
  if (!esp::is_last_block(&p.state->arrived, gridDim.x)) return;

  if (threadIdx.x == 0) seek_ranks(p);
  __syncthreads();
  PruneState& state = *p.state;
  const float low = state.low_rank, high = state.high_rank, most = static_cast<float>(state.taken);
  if (low >= 1) {
    find_bin(coarse_bins(p), static_cast<unsigned long long>(low), [&](int bin, unsigned long long before) {
      state.low_bin = static_cast<uint32_t>(bin);
      state.low_rank = low - static_cast<float>(before);
    });
  }
  if (high <= most) {
    find_bin(coarse_bins(p), static_cast<unsigned long long>(high), [&](int bin, unsigned long long before) {
      state.high_bin = static_cast<uint32_t>(bin);
      state.high_rank = high - static_cast<float>(before);
    });
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) coarse_bins(p)[b] = 0;
  if (threadIdx.x == 0) state.taken = 0;
}

// 11 bits more of both ends.
__global__ void __launch_bounds__(threads) prune_bracket_kernel(Prune p) {
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  PruneState& state = *p.state;
  if (state.refused != 0 || p.scopes[0].k == 0) return;
  const uint32_t low_bin = state.low_bin, high_bin = state.high_bin;
  for (int64_t s = blockIdx.x * threads + threadIdx.x; s < esp::prune_samples;
       s += static_cast<int64_t>(gridDim.x) * threads) {
    const uint32_t key = static_cast<uint32_t>(p.keys[s]);
    if (key == esp::prune_absent) continue;
    if (key >> 20 == low_bin) atomicAdd(&fine_bins(p, 0)[key >> 9 & (bins - 1)], 1u);
    if (key >> 20 == high_bin) atomicAdd(&fine_bins(p, 1)[key >> 9 & (bins - 1)], 1u);
  }
  if (!esp::is_last_block(&state.arrived, gridDim.x)) return;
  if (low_bin < bins) {
    find_bin(fine_bins(p, 0), static_cast<unsigned long long>(state.low_rank),
             [&](int bin, unsigned long long) {
               state.low = static_cast<int32_t>(low_bin << 20 | static_cast<uint32_t>(bin) << 9);
             });
  }
  if (high_bin < bins) {
    find_bin(fine_bins(p, 1), static_cast<unsigned long long>(state.high_rank),
             [&](int bin, unsigned long long) {
               const uint32_t end = (high_bin << 20 | static_cast<uint32_t>(bin) << 9) + 512;
               state.high = end > static_cast<uint32_t>(esp::prune_nan_key) ? esp::prune_nan_key + 1
                                                                            : static_cast<int32_t>(end);
             });
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < 2 * bins; b += threads) fine_bins(p, 0)[b] = 0;
}

// ---- collect

// Where the k-th key must be, from the counts.
__device__ void settle(const Prune& p) {
  PruneState& state = *p.state;
  PruneScope& scope = p.scopes[0];
  const int64_t below = static_cast<int64_t>(state.below), at_low = static_cast<int64_t>(state.at_low);
  const int64_t inside = static_cast<int64_t>(state.inside), at_high = static_cast<int64_t>(state.at_high);
  const int32_t low = state.low, high = state.high;
  const bool whole = state.overflow == 0 && inside <= static_cast<int64_t>(p.capacity);
  if (scope.k <= below) {  // missed
    scope.low = 0;
    scope.span = static_cast<uint32_t>(low);
    scope.count = below;
  } else if (scope.k <= below + at_low) {
    scope.low = static_cast<uint32_t>(low);
    scope.span = 1;
    scope.below = below;
    scope.count = at_low;
    scope.source = esp::prune_from_low;
  } else if (scope.k <= below + at_low + inside) {
    scope.low = static_cast<uint32_t>(low + 1);
    scope.span = static_cast<uint32_t>(high - low - 1);
    scope.below = below + at_low;
    scope.count = inside;
    scope.source = whole ? esp::prune_from_collected : esp::prune_from_weights;
  } else if (scope.k <= below + at_low + inside + at_high) {
    scope.low = static_cast<uint32_t>(high);
    scope.span = 1;
    scope.below = below + at_low + inside;
    scope.count = at_high;
    scope.source = esp::prune_from_high;
  } else {
    scope.low = static_cast<uint32_t>(high + 1);
    scope.span = static_cast<uint32_t>(esp::prune_nan_key - high);
    scope.below = below + at_low + inside + at_high;
    scope.count = static_cast<int64_t>(scope.remaining) - scope.below;
  }
  state.collected = static_cast<uint32_t>(inside);
  state.below = state.at_low = state.inside = state.at_high = 0;
  state.overflow = state.cursor = 0;
}

__global__ void __launch_bounds__(threads, esp::prune_blocks) prune_collect_kernel(Prune p) {
  ESP_SHARED(int32_t, room, [esp::prune_room]);
  ESP_SHARED(uint32_t, found, [4]);  // inside, at low, at high; where the keys go
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  PruneState& state = *p.state;
  if (state.refused != 0 || p.scopes[0].k == 0) return;
  const int32_t low = state.low, high = state.high;
  const uint32_t width = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
  unsigned long long below = 0, totals[3] = {};
  for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !walk.ends();) {
    const uint32_t c = walk.at;
    const PruneChunk chunk = walk.take();
    if (threadIdx.x < 3) found[threadIdx.x] = 0;
    __syncthreads();
    uint32_t under = 0, at_low = 0, at_high = 0;
    each_key(p.tensors[chunk.tensor], static_cast<int64_t>(chunk.index) * esp::prune_chunk, [&](int32_t key) {
      under += key < low ? 1 : 0;
      if (static_cast<uint32_t>(key) - static_cast<uint32_t>(low) > width) return;  // most
      if (key == low) {
        at_low++;
      } else if (key == high) {
        at_high++;
      } else {
        const uint32_t slot = atomicAdd(&found[0], 1u);
        if (slot < esp::prune_room) room[slot] = key;
      }
    });
    below += under;
    if (at_low > 0) atomicAdd(&found[1], at_low);
    if (at_high > 0) atomicAdd(&found[2], at_high);
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t inside = found[0];
      bool fits = inside <= esp::prune_room;
      uint32_t offset = 0;
      if (fits && inside > 0) {
        // The cursor may pass the end, and even come round: then the overflow is known already.
        offset = atomicAdd(&state.cursor, inside);
        fits = offset <= p.capacity && inside <= p.capacity - offset;
      }
      if (!fits) atomicExch(&state.overflow, 1u);
      found[3] = fits ? offset : 0xffffffffu;
      p.records[c] = {offset,
                      0,
                      static_cast<uint16_t>(inside),
                      static_cast<uint16_t>(found[1]),
                      static_cast<uint16_t>(found[2]),
                      0};
      for (int j = 0; j < 3; j++) totals[j] += found[j];
    }
    __syncthreads();
    const uint32_t inside = found[0], offset = found[3];
    if (offset != 0xffffffffu) {
      for (uint32_t j = threadIdx.x; j < inside; j += threads) p.keys[offset + j] = room[j];
    }
    __syncthreads();
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) below += __shfl_xor_sync(esp::all_lanes, below, apart);
  if (esp::lane_index() == 0) atomicAdd(&state.below, below);
  if (threadIdx.x == 0) {
    atomicAdd(&state.inside, totals[0]);
    atomicAdd(&state.at_low, totals[1]);
    atomicAdd(&state.at_high, totals[2]);
  }
  if (!esp::is_last_block(&state.arrived, gridDim.x)) return;
  if (threadIdx.x == 0) settle(p);
}

// ---- narrow

__device__ __forceinline__ int shift_of(uint32_t span) {
  int shift = 0;
  while ((span - 1) >> shift >= bins) shift++;
  return shift;
}

// The range of a scope becomes the bin that holds its k-th key. Called by all threads of one block, last in a kernel.
__device__ void pick(const Prune& p, int32_t s) {
  PruneScope& scope = p.scopes[s];
  unsigned long long* const histogram = p.histograms + static_cast<int64_t>(s) * bins;
  const PruneScope was = scope;
  if (was.span <= 1) return;
  const int shift = shift_of(was.span);
  find_bin(histogram, static_cast<unsigned long long>(was.k - was.below),
           [&](int bin, unsigned long long before) {
             const uint32_t offset = static_cast<uint32_t>(bin) << shift, rest = was.span - offset;
             uint32_t span = rest < 1u << shift ? rest : 1u << shift;
             // 16-bit weights have keys far apart: such a range holds only its first, unless it holds NaN's.
             const uint32_t low = was.low + offset;
             if (span <= 1u << p.granularity && low + span <= static_cast<uint32_t>(esp::prune_nan_key))
               span = 1;
             scope.low = low;
             scope.span = span;
             scope.below = was.below + static_cast<int64_t>(before);
             scope.count = static_cast<int64_t>(histogram[bin]);
           });
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) histogram[b] = 0;
}

// Four copies of the bins, by lane: magnitudes share few exponents, and lanes that meet in a bin wait for
// each other.
constexpr int copies = 4;

__device__ __forceinline__ void flush_bins(uint32_t* own, unsigned long long* histogram) {
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += threads) {
    uint32_t sum = 0;
#pragma unroll
    for (int copy = 0; copy < copies; copy++) {
      sum += own[b * copies + copy];
      own[b * copies + copy] = 0;
    }
    if (sum != 0) atomicAdd(&histogram[b], static_cast<unsigned long long>(sum));
  }
  __syncthreads();
}

__global__ void __launch_bounds__(threads, esp::prune_blocks) prune_narrow_kernel(Prune p) {
  ESP_SHARED(uint32_t, own, [bins * copies]);
  esp::let_next_begin();
  for (int b = static_cast<int>(threadIdx.x); b < bins * copies; b += threads) own[b] = 0;
  esp::wait_for_kernel_before();
  if (p.state->refused != 0) return;
  if (!p.by_tensor && p.scopes[0].span <= 1) return;
  __syncthreads();
  uint32_t* const mine = own + threadIdx.x % copies;
  int32_t of = -1;  // the scope whose keys the bins hold
  uint32_t low = 0, span = 0;
  int shift = 0;
  const auto count = [&](int32_t key) {
    const uint32_t offset = static_cast<uint32_t>(key) - low;
    if (offset < span) atomicAdd(&mine[(offset >> shift) * copies], 1u);
  };
  const bool collected = !p.by_tensor && p.scopes[0].source == esp::prune_from_collected;
  // Neighbouring chunks to one block: their scope changes seldom.
  const int64_t keys = collected ? p.state->collected : 0;
  const int64_t items = collected ? (keys + esp::prune_chunk - 1) / esp::prune_chunk : p.chunk_count;
  const int64_t first = items * blockIdx.x / gridDim.x, end = items * (blockIdx.x + 1) / gridDim.x;
  for (int64_t c = first; c < end; c++) {
    const int32_t s = p.by_tensor ? p.chunks[c].tensor : 0;
    if (s != of) {
      if (of >= 0) flush_bins(own, p.histograms + static_cast<int64_t>(of) * bins);
      of = s;
      low = p.scopes[s].low;
      span = p.scopes[s].span;
      shift = shift_of(span);
    }
    if (span <= 1) continue;
    if (collected) {
      const int64_t start = c * esp::prune_chunk;
      for (int64_t j = start + threadIdx.x; j < start + esp::prune_chunk && j < keys; j += threads)
        count(p.keys[j]);
    } else {
      const PruneChunk chunk = p.chunks[c];
      each_key(p.tensors[chunk.tensor], static_cast<int64_t>(chunk.index) * esp::prune_chunk, count);
    }
  }
  if (of >= 0) flush_bins(own, p.histograms + static_cast<int64_t>(of) * bins);
  if (!p.by_tensor && esp::is_last_block(&p.state->arrived, gridDim.x)) pick(p, 0);
}

// For scopes of a tensor: a block a scope.
__global__ void __launch_bounds__(threads) prune_pick_kernel(Prune p) {
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (p.state->refused == 0) pick(p, static_cast<int32_t>(blockIdx.x));
}

// ---- ties

__device__ __forceinline__ bool divides_ties(const PruneScope& scope) {
  return scope.k > 0 && scope.k - scope.below < scope.count;
}

// The element that divides the ties of a scope. Called by all threads of one block.
__device__ void divide(const Prune& p, int32_t s) {
  ESP_SHARED(long long, at, [2]);  // the chunk, and how many of its ties are pruned
  PruneScope& scope = p.scopes[s];
  if (!divides_ties(scope)) return;
  const unsigned long long wanted = static_cast<unsigned long long>(scope.k - scope.below);
  const int32_t key = static_cast<int32_t>(scope.low);
  const int64_t first = p.by_tensor ? p.first_chunk[s] : 0,
                end = p.by_tensor ? p.first_chunk[s + 1] : p.chunk_count;
  const int64_t share = (end - first + threads - 1) / threads;
  int64_t c = first + share * threadIdx.x;
  const int64_t mine_end = c + share < end ? c + share : end;
  unsigned long long mine = 0, total;
#pragma unroll 8
  for (int64_t i = c; i < mine_end; i++) mine += p.records[i].ties;
  unsigned long long before = sum_before(mine, &total);
  if (before < wanted && wanted <= before + mine) {
    while (before + p.records[c].ties < wanted) before += p.records[c++].ties;
    at[0] = c;
    at[1] = static_cast<long long>(wanted - before);
  }
  __syncthreads();
  const PruneChunk chunk = p.chunks[at[0]];
  const unsigned long long left = static_cast<unsigned long long>(at[1]);
  const esp_prune_tensor t = p.tensors[chunk.tensor];
  const int64_t start = static_cast<int64_t>(chunk.index) * esp::prune_chunk;
  const int64_t last = start + esp::prune_chunk < t.n ? start + esp::prune_chunk : t.n;
  int64_t i = start + threadIdx.x * (esp::prune_chunk / threads);
  const int64_t thread_end = i + esp::prune_chunk / threads < last ? i + esp::prune_chunk / threads : last;
  mine = 0;
  for (int64_t j = i; j < thread_end; j++) mine += key_at(t, j) == key ? 1 : 0;
  before = sum_before(mine, &total);
  if (before < left && left <= before + mine) {
    for (;; i++) {
      if (key_at(t, i) == key && ++before == left) break;
    }
    scope.tie_tensor = chunk.tensor;
    scope.tie_element = i + 1;
  }
}

__global__ void __launch_bounds__(threads) prune_ties_kernel(Prune p) {
  ESP_SHARED(uint32_t, found, [1]);
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (p.state->refused != 0) return;
  if (!p.by_tensor && !divides_ties(p.scopes[0])) return;
  for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !walk.ends();) {
    const uint32_t c = walk.at;
    const PruneChunk chunk = walk.take();
    const PruneScope& scope = p.scopes[p.by_tensor ? chunk.tensor : 0];
    if (!divides_ties(scope)) continue;
    const int32_t key = static_cast<int32_t>(scope.low), source = scope.source;
    if (source == esp::prune_from_low || source == esp::prune_from_high) {
      if (threadIdx.x == 0)
        p.records[c].ties = source == esp::prune_from_low ? p.records[c].at_low : p.records[c].at_high;
      continue;
    }
    if (threadIdx.x == 0) found[0] = 0;
    __syncthreads();
    uint32_t ties = 0;
    if (source == esp::prune_from_collected) {
      const PruneRecord record = p.records[c];
      for (uint32_t j = threadIdx.x; j < record.inside; j += threads)
        ties += p.keys[record.offset + j] == key ? 1 : 0;
    } else {
      each_key(p.tensors[chunk.tensor], static_cast<int64_t>(chunk.index) * esp::prune_chunk,
               [&](int32_t other) { ties += other == key ? 1 : 0; });
    }
    if (ties > 0) atomicAdd(&found[0], ties);
    __syncthreads();
    if (threadIdx.x == 0) p.records[c].ties = found[0];  // and it clears it: nobody else touches it before that
  }
  if (!p.by_tensor && esp::is_last_block(&p.state->arrived, gridDim.x)) divide(p, 0);
}

__global__ void __launch_bounds__(threads) prune_divide_kernel(Prune p) {
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (p.state->refused == 0) divide(p, static_cast<int32_t>(blockIdx.x));
}

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

// The bits of packs of n from element i on, 0 from `end` on; lanes with half a byte join. Called by whole warps.
template <int n>
__device__ __forceinline__ void store_bits(uint8_t* field, int i, int end, uint32_t bits) {
  if (n == 4) bits |= __shfl_down_sync(esp::all_lanes, bits, 1) << 4;
  __syncwarp();  // the earlier mask may be the same memory, and has been read
  if (i >= end || (n == 4 && esp::lane_index() % 2 != 0)) return;
  ESP_GLOBAL(field);
  field[i / 8] = static_cast<uint8_t>(bits);
}

// Packs that a thread of apply has at once: what registers allow. A multiprocessor of 12.0 needs the fewest bytes
// on their way, and would spill with four.
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
  const bool whole = esp::is_aligned(weights, 16), whole_out = esp::is_aligned(out, 16), in_place = out == weights;
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
    pruned += t.dtype == ESP_BF16  ? apply_chunk<bf16, by_pattern>(t, start, cut)
              : t.dtype == ESP_F16 ? apply_chunk<f16, by_pattern>(t, start, cut)
                                   : apply_chunk<float, by_pattern>(t, start, cut);
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

  // As many blocks as run at once: more would come when most multiprocessors are done, and each block costs its
  // part of a histogram.
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;
  const int64_t together = int64_t{limits.multiprocessors} * esp::prune_blocks,
                blocks = p.chunk_count < 1 ? 1 : p.chunk_count < together ? p.chunk_count : together;
  esp::Kernels kernels(limits, stream);
  const auto run = [&](const char* what, auto kernel, int64_t grid, auto... more) {
    return kernels.launch(what, kernel, grid, threads, p, more...);
  };
  if (esp_status status = run("magnitude_prune: begin", prune_begin_kernel, p.masked ? blocks : 1, now))
    return status;
  if (p.sampled) {
    constexpr int64_t sample_blocks = esp::prune_samples / threads / 4;
    if (esp_status status = run("magnitude_prune: sample", prune_sample_kernel, sample_blocks)) return status;
    if (esp_status status = run("magnitude_prune: bracket", prune_bracket_kernel, sample_blocks))
      return status;
    if (esp_status status = run("magnitude_prune: collect", prune_collect_kernel, blocks)) return status;
  }
  for (int pass = 0; selects && pass < 3; pass++) {
    if (esp_status status = run("magnitude_prune: narrow", prune_narrow_kernel, blocks)) return status;
    if (!p.by_tensor || p.count == 0) continue;
    if (esp_status status = run("magnitude_prune: pick", prune_pick_kernel, p.count)) return status;
  }
  if (selects) {
    if (esp_status status = run("magnitude_prune: ties", prune_ties_kernel, blocks)) return status;
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
