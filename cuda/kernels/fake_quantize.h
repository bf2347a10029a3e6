// What fake_quantize's plan and kernels share.
#pragma once
#include <cstdint>

#include "divisor.h"
#include "espalier/cuda/fake_quantize.h"
#include "fake_quantize_scale.h"
#include "fake_quantize_table.h"

namespace esp {

// A tensor [outer, channels, inner] of the list, one channel being seen as one row.
struct QuantizeEntry {
  const void* x;
  void* y;
  uint8_t* q;
  uint8_t* gate;
  float* scale;
  int32_t* zero_point;
  float* running;
  int64_t outer, channels, inner, n;
  int64_t ranges;  // of its first channel, in the workspace
  Divisor row;     // of the shorter of inner and quantize_longest_row
  esp_dtype dtype, y_dtype;
};
constexpr int64_t quantize_longest_row = 1 << 30;  // that is counted; what is longer never ends in a chunk
constexpr Divisor quantize_row_divisor(int64_t inner) {
  return divisor_of(static_cast<uint32_t>(inner > quantize_longest_row ? quantize_longest_row : inner > 0 ? inner : 1));
}

// The table: quantizer, tensors, then the lists of parts in the order of these. plan->operation[list] is the
// length of each.
enum QuantizeList {
  quantize_rows_warp,       // channels that lie whole in the registers of a warp, 8 a part
  quantize_rows_block,      // the same in a block, one a part
  quantize_rows_long,       // the same with twice the registers
  quantize_ranges_rows,     // ranges of what does not: 8 pieces of a row
  quantize_ranges_columns,  // the same where channels are narrow: a strip of columns
  quantize_scales,          // 256 channels
  quantize_chunks,          // quantize_chunk elements to be quantized with scales that are known
  quantize_lists,
  quantize_tensors = quantize_lists,  // plan->operation only
};

constexpr int quantize_threads = 256, quantize_warps = quantize_threads / 32;
constexpr int64_t quantize_chunk = 8192;
constexpr int quantize_packs = 4, quantize_long_packs = 8;  // of 16 bytes a thread
constexpr int64_t quantize_piece = 2048;                    // elements of a row for a warp
constexpr int64_t quantize_narrow = 16;                     // shorter rows are observed as columns
constexpr int64_t quantize_column_rows = 64;                // a thread

// The workspace: zeroed once. States of the tensors follow, then a range for each channel that is not fused.
struct QuantizeCall {
  uint32_t arrived, reserved[3];
};
struct QuantizeState {
  unsigned long long nan, infinite, bad;  // bad: INT64_MAX - channel; 0: none
};
// 0: no finite value yet.
struct QuantizeRange {
  uint32_t below, above;
};

// Columns side by side that a thread of a columns part has, and how many rows of threads there are.
struct QuantizeStrips {
  int64_t packs, strips;  // of a row; strips of quantize_threads packs
  int32_t width, lanes;   // packs of a strip at most, rows of threads
  int64_t blocks;         // of rows
};
ESP_EVERYWHERE inline QuantizeStrips quantize_strips(int64_t period, int64_t rows, int64_t element_bytes) {
  const int64_t per_pack = 16 / element_bytes, packs = (period + per_pack - 1) / per_pack;
  const int32_t width = packs < quantize_threads ? static_cast<int32_t>(packs) : quantize_threads;
  const int32_t lanes = quantize_threads / width;
  const int64_t height = lanes * quantize_column_rows;
  return {packs, (packs + width - 1) / width, width, lanes, (rows + height - 1) / height};
}

// The launches behind esp_cuda_fake_quantize_backward and esp_cuda_dequantize, with n > 0 elements.
esp_status launch_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n,
                                         esp_dtype dtype, void* stream);
esp_status launch_dequantize(const esp_dequantized& tensor, int64_t n, void* stream);

}  // namespace esp
