// How magnitude_prune finds the key of the k-th smallest weight of each scope, the list or a tensor, and the
// element that divides the weights with that key.
//
// 1. begin: counts what remains under an earlier mask; k of each scope.
// 2. sample (F32 lists): 131072 keys at pseudo-random places; two histograms of them give a bracket that
// holds the k-th
//    key but for one list in 10^5.
// 3. collect: one pass counts what lies below the bracket and at its two ends, and collects what lies inside
// (about
//    1.3 %).
// 4. narrow: three histograms of 2048 bins find the key among the collected; or among all weights, where the
// bracket
//    missed or held too much, where 16-bit keys tie by the thousand, and for scopes of a tensor. Each looks
//    whether it is still needed.
// 5. ties: where not all weights with the key are pruned, they are counted a chunk, and the element found
// that divides
//    them.
#pragma once
#include "magnitude_prune_keys.cuh"

namespace {

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

__global__ void __launch_bounds__(threads, esp::prune_collect_blocks) prune_collect_kernel(Prune p) {
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

// The range of a scope becomes the bin that holds its k-th key. Called by all threads of one block, last in a
// kernel.
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
  const esp::SharedCounters mine(own + threadIdx.x % copies);
  int32_t of = -1;  // the scope whose keys the bins hold
  uint32_t low = 0, span = 0;
  int shift = 0;
  const auto count = [&](int32_t key) {
    const uint32_t offset = static_cast<uint32_t>(key) - low;
    if (offset < span) mine.add_one((offset >> shift) * copies);
  };
  const bool collected = !p.by_tensor && p.scopes[0].source == esp::prune_from_collected;
  // Neighbouring chunks to one block: their scope changes seldom. Collected keys are few: cut so small that
  // all blocks have some.
  constexpr int at_once = 4, piece = at_once * threads;
  const int64_t keys = collected ? p.state->collected : 0;
  const int64_t items = collected ? (keys + piece - 1) / piece : p.chunk_count;
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
      int32_t key[at_once];
#pragma unroll
      for (int k = 0; k < at_once; k++) {
        const int64_t j = c * piece + k * threads + threadIdx.x;
        key[k] = j < keys ? p.keys[j] : esp::prune_absent;
      }
#pragma unroll
      for (int k = 0; k < at_once; k++) count(key[k]);
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

// Of what collecting has recorded. A warp a chunk: a record and a hundred keys are little more than two waits
// for memory, which a block would have chunk by chunk.
__device__ __forceinline__ void count_recorded_ties(const Prune& p, const PruneScope& scope) {
  constexpr uint32_t at_once = 4;
  const int32_t key = static_cast<int32_t>(scope.low), source = scope.source;
  const uint32_t warps = gridDim.x * (threads / 32), lane = static_cast<uint32_t>(esp::lane_index());
  for (uint32_t c = blockIdx.x * (threads / 32) + static_cast<uint32_t>(esp::warp_index());
       c < static_cast<uint32_t>(p.chunk_count); c += warps) {
    PruneRecord& record = p.records[c];
    uint32_t ties = source == esp::prune_from_low ? record.at_low : record.at_high;
    if (source == esp::prune_from_collected) {
      const uint32_t offset = record.offset, inside = record.inside;
      ties = 0;
#pragma unroll 1
      for (uint32_t first = lane; first < inside; first += at_once * 32) {
        int32_t keys[at_once];
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++)
          keys[k] = first + k * 32 < inside ? p.keys[offset + first + k * 32] : esp::prune_absent;
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++) ties += keys[k] == key ? 1 : 0;
      }
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) ties += __shfl_xor_sync(esp::all_lanes, ties, apart);
    }
    if (lane == 0) record.ties = ties;
  }
}

__global__ void __launch_bounds__(threads, esp::prune_collect_blocks) prune_ties_kernel(Prune p) {
  ESP_SHARED(uint32_t, found, [1]);
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (p.state->refused != 0) return;
  if (!p.by_tensor && !divides_ties(p.scopes[0])) return;
  const bool recorded = !p.by_tensor && p.scopes[0].source != esp::prune_from_weights;
  if (recorded) count_recorded_ties(p, p.scopes[0]);
  for (esp::Walk<PruneChunk> walk(p.chunks, p.chunk_count); !recorded && !walk.ends();) {
    const uint32_t c = walk.at;
    const PruneChunk chunk = walk.take();
    const PruneScope& scope = p.scopes[p.by_tensor ? chunk.tensor : 0];
    if (!divides_ties(scope)) continue;
    const int32_t key = static_cast<int32_t>(scope.low);
    if (threadIdx.x == 0) found[0] = 0;
    __syncthreads();
    uint32_t ties = 0;
    each_key(p.tensors[chunk.tensor], static_cast<int64_t>(chunk.index) * esp::prune_chunk,
             [&](int32_t other) { ties += other == key ? 1 : 0; });
    if (ties > 0) atomicAdd(&found[0], ties);
    __syncthreads();
    if (threadIdx.x == 0)
      p.records[c].ties = found[0];  // and it clears it: nobody else touches it before that
  }
  if (!p.by_tensor && esp::is_last_block(&p.state->arrived, gridDim.x)) divide(p, 0);
}

__global__ void __launch_bounds__(threads) prune_divide_kernel(Prune p) {
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (p.state->refused == 0) divide(p, static_cast<int32_t>(blockIdx.x));
}

}  // namespace
