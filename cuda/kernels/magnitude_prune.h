// What magnitude_prune's plan and kernels share.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "espalier/cuda/magnitude_prune.h"

namespace esp {

constexpr int prune_threads = 256;
constexpr int prune_chunk = 8192;  // elements
constexpr int prune_blocks = 3;    // a multiprocessor, at most; they walk the chunks in a grid-stride loop
constexpr int prune_collect_blocks = 4;  // the same of what waits for a counter in each chunk
constexpr int prune_bins = 2048;
constexpr int prune_room = 2048;               // keys of one chunk that can be collected
constexpr int prune_samples = 131072;          // keys
constexpr int64_t prune_sampled = 65536;       // fewer weights are not sampled
constexpr int32_t prune_nan_key = 0x7f800001;  // of every NaN, and the largest key
constexpr int32_t prune_absent = 0x7fffffff;   // in the place of a weight that takes no part

// The table: tensors, elements before each tensor (count + 1), chunks before each tensor (count + 1), chunks.
struct PruneChunk {
  int32_t tensor, index;
};

// What collecting found in a chunk. `ties`: weights with the key of the cut.
struct PruneRecord {
  uint32_t offset, ties;
  uint16_t inside, at_low, at_high, reserved;
};

// Where what has the sought key can be found.
enum PruneSource : int32_t { prune_from_weights, prune_from_collected, prune_from_low, prune_from_high };

// A set of weights of which k are pruned: the list, or a tensor. Keys are sought in low .. low + span - 1,
// `below` of them lie before it and `count` in it; span 1 has found the key.
struct PruneScope {
  unsigned long long remaining;
  int64_t k, below, count;
  uint32_t low, span;
  int32_t source;
  int32_t tie_tensor;  // with the key, the elements before this one are pruned
  int64_t tie_element;
};

// The bracket of the sampled path.
struct PruneState {
  unsigned long long below, at_low, inside, at_high;  // counted by collecting
  unsigned long long pruned;
  uint32_t cursor, overflow;  // of the collected keys
  int32_t low, high;          // the bracket
  float low_rank, high_rank;  // sought in the bins of the sample
  uint32_t low_bin, high_bin;
  uint32_t taken;  // samples that take part
  uint32_t arrived;
  int32_t refused;     // the count is above what remains
  uint32_t collected;  // keys
};

// A fraction as it multiplies: mantissa * 2^exponent.
struct PruneAmount {
  uint64_t mantissa;
  int32_t exponent;
};

inline PruneAmount prune_amount(double fraction) {
  if (!(fraction > 0 && fraction <= 1)) return {0, 0};
  int exponent;
  const double mantissa = std::frexp(fraction, &exponent);
  return {static_cast<uint64_t>(std::ldexp(mantissa, 53)), exponent - 53};
}

inline uint32_t prune_bits(float threshold) {
  uint32_t bits;
  std::memcpy(&bits, &threshold, sizeof bits);
  return bits;
}

// fraction * n, rounded to double and then to an integer, both half to even, as the CPU computes it in
// double. n <= 2^53.
constexpr int64_t prune_share(PruneAmount amount, int64_t n) {
  unsigned __int128 product = static_cast<unsigned __int128>(amount.mantissa) * static_cast<uint64_t>(n);
  int dropped = 0;
  for (unsigned __int128 rest = product >> 53; rest != 0; rest >>= 1) dropped++;
  if (dropped > 0) {
    const unsigned __int128 half = static_cast<unsigned __int128>(1) << (dropped - 1),
                            rest = product & (2 * half - 1);
    product >>= dropped;
    if (rest > half || (rest == half && (product & 1) != 0)) product++;
  }
  const uint64_t value = static_cast<uint64_t>(product);  // times 2^shift
  const int shift = amount.exponent + dropped;
  if (shift >= 0) return static_cast<int64_t>(value << shift);
  if (shift < -62) return 0;
  const uint64_t half = uint64_t{1} << (-shift - 1), rest = value & (2 * half - 1), whole = value >> -shift;
  return static_cast<int64_t>(whole + (rest > half || (rest == half && (whole & 1) != 0) ? 1 : 0));
}

// plan->operation
constexpr int prune_tensors = 0, prune_chunks = 1, prune_scopes = 2, prune_kind = 3, prune_group = 4,
              prune_capacity = 5, prune_flags = 6, prune_decisions = 7;
// Flags: there is a mask; the list is sampled; low bits that no key has but that of NaN.
constexpr int64_t prune_masked = 1, prune_samples_flag = 2, prune_decides = 4;
constexpr int prune_granularity_shift = 8;

}  // namespace esp
