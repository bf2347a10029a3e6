// How sums over channels, which have the order of fake_quantize_order.h, are cut for the blocks of a device:
// by fake_quantize_clip and fake_quantize_scale_gradient alike.
#pragma once
#include "fake_quantize_order.h"
#include "fake_quantize_table.h"

namespace esp {

constexpr int sum_threads = 256, sum_warps = sum_threads / 32;
constexpr int sum_pack = 4;                     // elements that a thread loads at once
constexpr int sum_team = sum_lanes / sum_pack;  // threads of a segment of rows
constexpr int sum_strip = 32 * sum_pack;        // columns of a matrix that a block adds up
static_assert(chunk_rows == sum_warps * segment_rows, "a warp has a segment of a matrix");

// The lists of parts, in the order of the table. plan->operation[list] is the length of each.
enum SumList {
  sum_rows,      // chunks of rows: as many as a block has threads for
  sum_columns,   // a chunk of a matrix, a pack of columns a lane
  sum_channels,  // channels whose chunks are to be added up: one a warp
  sum_lists,
  sum_tensors = sum_lists,  // plan->operation only
};

// Sums of the same elements, side by side.
template <int count>
struct alignas(count % 2 == 0 ? 16 : 8) Sums {
  double of[count];
};

// Segments of a chunk of rows that a block has room for: theirs, rounded up to a power of two.
inline int32_t sum_group(const SumOrder& order) {
  int32_t group = 1;
  while (group < order.segments && group < chunk_segments) group *= 2;
  return group;
}
// Chunks of rows that a block adds up.
ESP_EVERYWHERE inline int sum_slots(int32_t group) {
  return sum_threads / sum_team / group;
}

// The parts of a tensor by list; `channels`: whether its chunks are to be added up.
inline void count_sum_parts(const SumOrder& order, int32_t group, bool channels,
                            int64_t (&parts)[sum_lists]) {
  const auto ceil_div = [](int64_t a, int64_t b) { return a / b + (a % b != 0); };
  const bool columns = order.columns();
  parts[sum_rows] = columns ? 0 : ceil_div(order.channels * order.chunks, sum_slots(group));
  parts[sum_columns] = columns ? order.chunks * ceil_div(order.matrix.width, sum_strip) : 0;
  parts[sum_channels] = channels ? ceil_div(order.channels, sum_warps) : 0;
}

}  // namespace esp
