// magnitude_prune, one block: counting and collecting keys, zeroing by a key, zeroing by a pattern.
//
// The key of a weight is the bits of |w| as F32, which order as the magnitudes do, NaNs clamped to one key above infinity.
// Keys are not negative, so signed comparisons serve.
// collect: counts what lies below and at the ends of a bracket and writes what lies inside, compressed in a register and
// stored without a branch around it. Bytes: the weights once.
// apply: reads the weights, writes them and their bits. Survivors keep their bits, so 16-bit storage is never converted back.
// Bulk: 16 elements a turn; tail: the same on lanes that take no part (INT32_MAX, above every key).
#include "magnitude_prune_kernel.h"

#include "simd/simd.h"

namespace {

using esp::PruneBlock;
using esp::PruneCounts;
using esp::PruneOutput;
using esp::PrunePattern;

ESP_INLINE i32x16 keys_of(f32x16 x) { return min(bits_of(abs(x)), set1(esp::prune_nan_key)); }

// The mask of elements i .. i+n-1.
ESP_INLINE mask16 taking_part(const uint8_t* mask, int64_t i, int64_t n) {
  if (mask == nullptr) return first_lanes(n);
  return mask_of(n == 16 ? load_bits(mask, i) : load_bits_n(mask, i, n));
}

template <class T>
ESP_INLINE i32x16 keys_at(const PruneBlock& block, int64_t i, int64_t n) {
  const T* p = static_cast<const T*>(block.weights) + i;
  const i32x16 keys = keys_of(load_up_to(p, n));
  if (block.mask == nullptr && n == 16) return keys;
  return select(taking_part(block.mask, i, n), keys, set1(INT32_MAX));
}

ESP_INLINE int32_t sum(i32x16 v) {
  int32_t lanes[16], total = 0;
  store(lanes, v);
  for (int32_t lane : lanes) total += lane;
  return total;
}

struct Tallies {
  i32x16 below, at_low, at_high;
  int32_t* keys;
};

ESP_INLINE void collect_16(i32x16 k, i32x16 low, i32x16 high, Tallies* t) {
  const mask16 inside = (low < k) & (k < high);
  t->below = tally(t->below, k < low);
  t->at_low = tally(t->at_low, k == low);
  t->at_high = tally(t->at_high, k == high);
  compress_store(t->keys, inside, k);
  t->keys += count(inside);
}

template <class T>
PruneCounts collect_block(const PruneBlock& block, int32_t low_key, int32_t high_key, int32_t* keys) {
  const i32x16 low = set1(low_key), high = set1(high_key), zero = set1(0);
  Tallies t = {zero, zero, zero, keys};
  const T* p = static_cast<const T*>(block.weights);
  const int64_t bulk = block.n & ~int64_t{15};
  int64_t i = 0;
  if (block.mask == nullptr) {
    for (; i < bulk; i += 16) {
      prefetch(p + i);
      collect_16(keys_of(load(p + i)), low, high, &t);
    }
  } else {
    for (; i < bulk; i += 16) {
      prefetch(p + i);
      collect_16(keys_at<T>(block, i, 16), low, high, &t);
    }
  }
  if (i < block.n) collect_16(keys_at<T>(block, i, block.n - i), low, high, &t);
  return {sum(t.below), sum(t.at_low), static_cast<int32_t>(t.keys - keys), sum(t.at_high)};
}

template <class T>
void histogram_block(const PruneBlock& block, int32_t low, int32_t span, int32_t shift, uint32_t* bins) {
  const i32x16 base = set1(low), width = set1(span);
  for (int64_t i = 0; i < block.n; i += 16) {
    const int64_t n = block.n - i < 16 ? block.n - i : 16;
    prefetch(static_cast<const T*>(block.weights) + i);
    const i32x16 offset = keys_at<T>(block, i, n) - base;
    uint32_t inside = bits_of(less_unsigned(offset, width));
    if (inside == 0) continue;
    int32_t lanes[16];
    store(lanes, offset);
    for (; inside != 0; inside &= inside - 1) bins[lanes[__builtin_ctz(inside)] >> shift]++;
  }
}

template <class T>
int32_t sample_block(const PruneBlock& block, int64_t i, int32_t* keys) {
  const int64_t n = block.n - i < 16 ? block.n - i : 16;
  store(keys, keys_at<T>(block, i, n));
  return count(taking_part(block.mask, i, n));
}

template <class T>
int64_t past_nth_block(const PruneBlock& block, int32_t key, int64_t nth) {
  int64_t i = 0;
  for (;; i += 16) {
    const int64_t n = block.n - i < 16 ? block.n - i : 16;
    uint32_t found = bits_of(keys_at<T>(block, i, n) == set1(key));
    const int64_t here = __builtin_popcount(found);
    if (nth > here) {
      nth -= here;
      continue;
    }
    for (; nth > 1; nth--) found &= found - 1;
    return i + __builtin_ctz(found) + 1;
  }
}

template <bool stream_out>
ESP_INLINE void put(const float* in, float* out, mask16 m) {
  if (stream_out) {
    ::stream(out, keep(m, load(in)));
  } else {
    store(out, keep(m, load(in)));
  }
}
template <bool stream_out>
ESP_INLINE void put(const bf16* in, bf16* out, mask16 m) {
  copy_kept(&out->bits, &in->bits, m);
}
template <bool stream_out>
ESP_INLINE void put(const f16* in, f16* out, mask16 m) {
  copy_kept(&out->bits, &in->bits, m);
}

template <class T>
ESP_INLINE void put_n(const T* in, T* out, mask16 m, int64_t n) {
  const uint32_t bits = bits_of(m);
  for (int64_t j = 0; j < n; j++) out[j] = (bits >> j & 1) != 0 ? in[j] : T{};
}

// Zeroes what lies below `bound`, elements [i, end) of the block, end - i a multiple of 16.
template <class T, bool stream_out>
ESP_INLINE void apply_bulk(const PruneBlock& block, const PruneOutput& output, int64_t i, int64_t end, int32_t bound_key,
                           i32x16* kept) {
  const T* in = static_cast<const T*>(block.weights);
  T* out = static_cast<T*>(output.out);
  const i32x16 bound = set1(bound_key);
  for (; i < end; i += 16) {
    prefetch(in + i);
    mask16 m = ~(keys_of(load(in + i)) < bound);
    if (block.mask != nullptr) m = m & mask_of(load_bits(block.mask, i));
    *kept = tally(*kept, m);
    if (output.mask_out != nullptr) store_bits(output.mask_out, i, bits_of(m));
    if (out != nullptr) put<stream_out>(in + i, out + i, m);
  }
}

// The same for up to 16 elements of which those before element `ties` lose the key too.
template <class T>
ESP_INLINE void apply_edge(const PruneBlock& block, const PruneOutput& output, int64_t i, int64_t n, int32_t key,
                           int64_t ties, i32x16* kept) {
  const i32x16 keys = keys_at<T>(block, i, n);
  const int64_t tied = ties <= i ? 0 : ties - i < 16 ? ties - i : 16;
  const mask16 tie = (keys == set1(key)) & first_lanes(tied);
  const mask16 m = ~((keys < set1(key)) | tie) & taking_part(block.mask, i, n);
  *kept = tally(*kept, m);
  if (output.mask_out != nullptr) store_bits_n(output.mask_out, i, bits_of(m), n);
  if (output.out != nullptr) put_n(static_cast<const T*>(block.weights) + i, static_cast<T*>(output.out) + i, m, n);
}

// Three stretches: all ties pruned, the 16 elements where that changes, none pruned.
template <class T, bool stream_out>
int64_t apply_to(const PruneBlock& block, const PruneOutput& output, int32_t key, int64_t ties) {
  const int64_t bulk = block.n & ~int64_t{15}, before = ties < bulk ? ties & ~int64_t{15} : bulk;
  i32x16 kept = set1(0);
  apply_bulk<T, stream_out>(block, output, 0, before, key + 1, &kept);
  int64_t i = before;
  if (i < bulk && ties > i) {
    apply_edge<T>(block, output, i, 16, key, ties, &kept);
    i += 16;
  }
  apply_bulk<T, stream_out>(block, output, i, bulk, key, &kept);
  if (bulk < block.n) apply_edge<T>(block, output, bulk, block.n - bulk, key, ties, &kept);
  if (stream_out) fence();
  return sum(kept);
}

template <class T>
int64_t apply_block(const PruneBlock& block, const PruneOutput& output, int32_t key, int64_t ties) {
  return output.stream ? apply_to<T, true>(block, output, key, ties) : apply_to<T, false>(block, output, key, ties);
}

// Bits i .. i+n-1 of a field, 1 <= n <= 16, at any i.
ESP_INLINE uint32_t bits_at(const uint8_t* field, int64_t i, int64_t n) {
  const int shift = static_cast<int>(i & 7);
  uint32_t value = 0;
  for (int64_t b = 0; b * 8 < shift + n; b++) value |= static_cast<uint32_t>(field[(i >> 3) + b]) << (8 * b);
  return value >> shift & ((1u << n) - 1);
}
ESP_INLINE void set_bits_at(uint8_t* field, int64_t i, int64_t n, uint32_t value) {
  const int shift = static_cast<int>(i & 7);
  const uint32_t window = ((1u << n) - 1) << shift;
  for (int64_t b = 0; b * 8 < shift + n; b++) {
    uint8_t* byte = field + (i >> 3) + b;
    *byte = static_cast<uint8_t>((*byte & ~(window >> (8 * b))) | (value << shift) >> (8 * b));
  }
}

// Elements start + c * stride for c < n, and back; those not in m become 0.
template <class T>
ESP_INLINE i32x16 pattern_keys(const PruneBlock& block, int64_t start, int64_t stride, int64_t n) {
  const T* in = static_cast<const T*>(block.weights) + start;
  f32x16 x;
  uint32_t part = (1u << n) - 1;
  if (stride == 1) {
    x = load_up_to(in, n);
    if (block.mask != nullptr) part = bits_at(block.mask, start, n);
  } else {
    T lanes[16] = {};
    for (int64_t c = 0; c < n; c++) {
      lanes[c] = in[c * stride];
      if (block.mask != nullptr && bits_at(block.mask, start + c * stride, 1) == 0) part &= ~(1u << c);
    }
    x = load(lanes);
  }
  return select(mask_of(static_cast<uint16_t>(part)), keys_of(x), set1(-1));
}
template <class T>
ESP_INLINE void pattern_store(const PruneBlock& block, const PruneOutput& output, int64_t start, int64_t stride, int64_t n,
                              mask16 m) {
  const T* in = static_cast<const T*>(block.weights) + start;
  T* out = output.out == nullptr ? nullptr : static_cast<T*>(output.out) + start;
  const uint32_t bits = bits_of(m);
  if (stride == 1) {
    if (out != nullptr && n == 16) put<false>(in, out, m);
    if (out != nullptr && n < 16) put_n(in, out, m, n);
    if (output.mask_out != nullptr) set_bits_at(output.mask_out, start, n, bits);
    return;
  }
  for (int64_t c = 0; c < n; c++) {
    const uint32_t one = bits >> c & 1;
    if (out != nullptr) out[c * stride] = one != 0 ? in[c * stride] : T{};
    if (output.mask_out != nullptr) set_bits_at(output.mask_out, start + c * stride, 1, one);
  }
}

// Up to 16 groups side by side, lane c the group whose element j lies at start + j * step + c * stride. An element stays
// where fewer than `keep` of its group are greater; of equals the later counts as greater.
template <class T>
ESP_INLINE int64_t pattern_columns(const PruneBlock& block, const PruneOutput& output, const PrunePattern& pattern,
                                   int64_t start, int64_t step, int64_t stride, int64_t columns) {
  i32x16 keys[ESP_PRUNE_GROUP_MAX], greater[ESP_PRUNE_GROUP_MAX];
  for (int32_t j = 0; j < pattern.group; j++) {
    keys[j] = pattern_keys<T>(block, start + j * step, stride, columns);
    greater[j] = set1(0);
  }
  for (int32_t a = 0; a < pattern.group; a++) {
    for (int32_t b = a + 1; b < pattern.group; b++) {
      const mask16 first_wins = keys[b] < keys[a];
      greater[a] = tally(greater[a], ~first_wins);
      greater[b] = tally(greater[b], first_wins);
    }
  }
  int64_t kept = 0;
  for (int32_t j = 0; j < pattern.group; j++) {
    const mask16 stay = (greater[j] < set1(pattern.keep)) & (set1(-1) < keys[j]);
    kept += count(stay);
    pattern_store<T>(block, output, start + j * step, stride, columns, stay);
  }
  return kept;
}

// Groups along the last axis that 16 lanes hold whole: each lane meets the others of its group by rotation.
template <class T, int32_t group>
int64_t pattern_rotated(const PruneBlock& block, const PruneOutput& output, const PrunePattern& pattern) {
  i32x16 from[group];
  mask16 later[group];
  for (int32_t d = 1; d < group; d++) {
    const i32x16 lane = lane_index();
    from[d] = (lane & set1(~(group - 1))) | ((lane + set1(d)) & set1(group - 1));
    later[d] = lane < from[d];
  }
  const i32x16 keep = set1(pattern.keep);
  i32x16 kept = set1(0);
  for (int64_t i = 0; i < block.n; i += 16) {
    const int64_t n = block.n - i < 16 ? block.n - i : 16;
    prefetch(static_cast<const T*>(block.weights) + i);
    const i32x16 keys = pattern_keys<T>(block, i, 1, n);
    i32x16 greater = set1(0);
    for (int32_t d = 1; d < group; d++) {
      const i32x16 other = permute(keys, from[d]);
      greater = tally(greater, (keys < other) | ((keys == other) & later[d]));
    }
    const mask16 stay = (greater < keep) & (set1(-1) < keys);
    kept = tally(kept, stay);
    pattern_store<T>(block, output, i, 1, n, stay);
  }
  return sum(kept);
}

template <class T>
int64_t pattern_block(const PruneBlock& block, const PruneOutput& output, const PrunePattern& pattern) {
  int64_t kept = 0;
  const int64_t unit = pattern.group * pattern.inner;
  if (pattern.inner == 1) {
    switch (pattern.group) {
      case 2:
        return pattern_rotated<T, 2>(block, output, pattern);
      case 4:
        return pattern_rotated<T, 4>(block, output, pattern);
      case 8:
        return pattern_rotated<T, 8>(block, output, pattern);
      default:
        break;
    }
    const int64_t groups = block.n / pattern.group;
    for (int64_t g = 0; g < groups; g += 16) {
      kept += pattern_columns<T>(block, output, pattern, g * unit, 1, pattern.group, groups - g < 16 ? groups - g : 16);
    }
    return kept;
  }
  for (int64_t start = 0; start < block.n; start += unit) {
    for (int64_t c = 0; c < pattern.inner; c += 16) {
      const int64_t columns = pattern.inner - c < 16 ? pattern.inner - c : 16;
      kept += pattern_columns<T>(block, output, pattern, start + c, pattern.inner, 1, columns);
    }
  }
  return kept;
}

PruneCounts collect(esp_dtype dtype, const PruneBlock& block, int32_t low, int32_t high, int32_t* keys) {
  return with_dtype(dtype, [&](auto element) { return collect_block<decltype(element)>(block, low, high, keys); });
}
void histogram(esp_dtype dtype, const PruneBlock& block, int32_t low, int32_t span, int32_t shift, uint32_t* bins) {
  return with_dtype(dtype, [&](auto element) { return histogram_block<decltype(element)>(block, low, span, shift, bins); });
}
int32_t sample(esp_dtype dtype, const PruneBlock& block, int64_t i, int32_t* keys) {
  return with_dtype(dtype, [&](auto element) { return sample_block<decltype(element)>(block, i, keys); });
}
int64_t past_nth(esp_dtype dtype, const PruneBlock& block, int32_t key, int64_t nth) {
  return with_dtype(dtype, [&](auto element) { return past_nth_block<decltype(element)>(block, key, nth); });
}
int64_t apply(esp_dtype dtype, const PruneBlock& block, const PruneOutput& output, int32_t key, int64_t ties) {
  return with_dtype(dtype, [&](auto element) { return apply_block<decltype(element)>(block, output, key, ties); });
}
int64_t pattern(esp_dtype dtype, const PruneBlock& block, const PruneOutput& output, const PrunePattern& pattern) {
  return with_dtype(dtype, [&](auto element) { return pattern_block<decltype(element)>(block, output, pattern); });
}

int64_t count_bits(const uint8_t* bits, int64_t n) {
  int64_t total = 0, i = 0;
  for (; i + 64 <= n; i += 64) {
    uint64_t word;
    __builtin_memcpy(&word, bits + (i >> 3), 8);
    total += __builtin_popcountll(word);
  }
  for (; i < n; i += 8) {
    const uint32_t valid = n - i < 8 ? (1u << (n - i)) - 1 : 0xff;
    total += __builtin_popcount(bits[i >> 3] & valid);
  }
  return total;
}

}  // namespace

namespace esp {
extern const PruneKernels ESP_VARIANT(magnitude_prune);
const PruneKernels ESP_VARIANT(magnitude_prune) = {collect, histogram, sample, past_nth, apply, pattern, count_bits};
}  // namespace esp
