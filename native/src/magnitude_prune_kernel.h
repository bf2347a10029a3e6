#pragma once
#include "cpu_features.h"
#include "espalier/magnitude_prune.h"

namespace esp {

constexpr int32_t prune_nan_key = 0x7f800001;  // of every NaN, and the largest key
constexpr int32_t prune_bins = 4096;

// One block of one tensor; starts at a multiple of 16 elements of it.
struct PruneBlock {
  const void* weights;
  const uint8_t* mask;  // of what takes part, or nullptr: all
  int64_t n;
};

// How many keys of a block lie where; `inside` of them were written.
struct PruneCounts {
  int32_t below;    // key < low
  int32_t at_low;   // key == low
  int32_t inside;   // low < key < high
  int32_t at_high;  // key == high; at_low again where low == high
};

struct PruneOutput {
  void* out;          // or nullptr
  uint8_t* mask_out;  // or nullptr
  bool stream;        // out is aligned to 64 bytes and bypasses the cache
};

// Groups along an axis: whole spans of group * inner elements.
struct PrunePattern {
  int64_t inner;
  int32_t keep, group;
};

struct PruneKernels {
  // keys has room for n + 16, n < 2^31.
  PruneCounts (*collect)(esp_dtype dtype, const PruneBlock& block, int32_t low, int32_t high, int32_t* keys);
  // bins[(key - low) >> shift]++ for low <= key < low + span.
  void (*histogram)(esp_dtype dtype, const PruneBlock& block, int32_t low, int32_t span, int32_t shift, uint32_t* bins);
  // 16 keys, of which n are weights that take part and come first; the rest is INT32_MAX. i: element of the block.
  int32_t (*sample)(esp_dtype dtype, const PruneBlock& block, int64_t i, int32_t* keys);
  // Just past the nth (from 1) element with that key.
  int64_t (*past_nth)(esp_dtype dtype, const PruneBlock& block, int32_t key, int64_t nth);
  // Both return how many weights are kept.
  int64_t (*apply)(esp_dtype dtype, const PruneBlock& block, const PruneOutput& output, int32_t key, int64_t ties);
  int64_t (*pattern)(esp_dtype dtype, const PruneBlock& block, const PruneOutput& output, const PrunePattern& pattern);
  int64_t (*count_bits)(const uint8_t* bits, int64_t n);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(PruneKernels, magnitude_prune)
