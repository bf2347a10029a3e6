// What the kernels of magnitude_prune share: what they are given, the keys of weights, and ranks in
// histograms.
#pragma once
#include "kernel.cuh"
#include "magnitude_prune.h"

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
__device__ __forceinline__ void keys_of(const Pack<T, 16 / sizeof(T)>& x, uint32_t taking,
                                        int32_t (&key)[16 / sizeof(T)]) {
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
  esp::with_dtype(t.dtype, [&](auto element) { each_key_of<decltype(element)>(t, start, visit); });
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

}  // namespace
