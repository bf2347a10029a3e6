// What fused_sgd's plan and kernels share.
#pragma once
#include <cstdint>

#include "espalier/cuda/fused_sgd.h"
#include "gradient_norm.h"

namespace esp {

constexpr int sgd_threads = 384;                             // two blocks leave 80 registers a thread
constexpr int sgd_packs = 4;                                 // of 4 elements a thread
constexpr int sgd_piece = sgd_threads * sgd_packs * 4;       // elements of a block
constexpr int sgd_piece_rows = 1024;                         // rows that a piece can hold scales for
constexpr int sgd_panel_columns = 384, sgd_panel_rows = 32;  // of a block of columns

// How a tensor gets its scales.
enum SgdMode : int32_t {
  sgd_plain,  // there are none
  sgd_given,  // they are known
  sgd_rows,   // rows lie whole in a piece: found and used in one pass
  sgd_spread  // a channel spans several pieces: update and absmax, then a second pass
};

// The table: tensors, chunks of the first pass, chunks of the second, the table of the norm.
struct SgdEntry {
  float* weight;
  const void* gradient;
  float* momentum;
  const uint8_t* mask;
  uint8_t* gate;
  void* copy;
  float* scale;
  int64_t n;
  int64_t cols;   // elements of a row; of the tensor where that is one channel
  int64_t piece;  // elements of a piece in the first pass, a multiple of 32 unless there is one piece
  int64_t slot;   // its channels' first absmax in the workspace, where they are spread
  int32_t gradient_dtype, copy_type;
  int32_t columns;  // channels are columns
  int32_t mode;
};
struct SgdChunk {
  int32_t tensor, index;
};

// Panels of columns: chunk index = row block * panels + panel.
constexpr int64_t sgd_panels(int64_t cols) {
  return (cols + sgd_panel_columns - 1) / sgd_panel_columns;
}
// Whether the second pass goes by panels too: where rows begin inside a word of the gate, pieces must not.
constexpr bool sgd_quantizes_panels(const SgdEntry& e) {
  return e.columns && (e.gate == nullptr || e.cols % 32 == 0);
}

// The workspace: this, absmax slots, the workspace of the norm. Zeroed once.
struct SgdState {
  StepGuard guard;
  unsigned long long non_finite_channels;
  uint32_t arrived, reserved;
};

// plan->operation
constexpr int sgd_tensors = 0, sgd_first_chunks = 1, sgd_second_chunks = 2, sgd_slots = 3, sgd_guarded = 4,
              sgd_with_momentum = 5, sgd_norm_chunks = 6;

}  // namespace esp
