// What fake_quantize_clip's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/fake_quantize_clip.h"
#include "fake_quantize_order.h"

namespace esp {

struct ClipEntry {
  const void* x;
  float* scale;
  int32_t* zero_point;
  const float* running;  // minima, then maxima of its channels
  SumOrder order;
  int64_t channel;   // its first among all, in the workspace
  int64_t partials;  // of the first chunk, in the workspace
  esp_dtype dtype;
  int32_t group;  // rows: segments of a chunk, rounded up to a power of two
};

// A piece of a tensor's work; what piece `index` is depends on the list that the part is in.
struct ClipPart {
  int32_t tensor, index;
};

// The table: quantizer, tensors, then the lists of parts in the order of these. plan->operation[list] is the
// length of each.
enum ClipList {
  clip_rows,      // chunks of rows: as many as a block has threads for
  clip_columns,   // a chunk of a matrix, a pack of columns a lane
  clip_channels,  // channels, one a warp
  clip_lists,
  // plan->operation only
  clip_tensors = clip_lists,
  clip_steps,         // of the quantizer
  clip_all_channels,  // of all tensors
};

constexpr int clip_threads = 256, clip_warps = clip_threads / 32;
constexpr int clip_pack = 4;                      // elements that a thread loads at once
constexpr int clip_team = sum_lanes / clip_pack;  // threads of a segment of rows
constexpr int clip_strip = 32 * clip_pack;        // columns of a matrix that a block adds up
constexpr int clip_ratios = 4;                    // that are tried at once
static_assert(chunk_rows == clip_warps * segment_rows, "a warp has a segment of a matrix");

// Chunks of rows that a block adds up.
ESP_EVERYWHERE inline int clip_slots(int32_t group) {
  return clip_threads / clip_team / group;
}

struct ClipHead {
  esp_quantizer quantizer;
  int32_t reserved[6];
};
static_assert(sizeof(ClipHead) % 16 == 0 && sizeof(ClipEntry) % 8 == 0, "tensors and parts follow");

// The best of a channel so far. The workspace: one for each channel, then the sums of the chunks.
struct ClipBest {
  double error;
  float scale;
  int32_t zero_point;
};
struct alignas(16) ClipErrors {
  double of[clip_ratios];
};

}  // namespace esp
