// What plans and kernels of fused optimizer steps share.
#pragma once
#include <cstdint>

#include "divisor.h"
#include "espalier/working_copy.h"
#include "gradient_norm.h"

namespace esp {

constexpr int step_threads = 256;                          // three blocks leave 80 registers a thread, two 128
constexpr int step_packs = 6;                              // of 4 elements a thread
constexpr int step_piece = step_threads * step_packs * 4;  // elements of a block
constexpr int step_piece_rows = 1024;                      // rows that a piece can hold scales for
constexpr int step_panel_columns = 256, step_panel_rows = 48;  // of a block of columns

constexpr int64_t step_longest_row = 1 << 30;  // that is counted; what is longer never ends in a piece

// How a tensor gets its scales.
enum StepMode : int32_t {
  step_plain,  // there are none
  step_given,  // they are known
  step_rows,   // rows lie whole in a piece: found and used in one pass
  step_spread  // a channel spans several pieces: update and absmax, then a second pass
};

// The table: tensors, chunks of the first pass, chunks of the second, the table of the norm.
struct StepEntry {
  float* weight;
  const void* gradient;
  float* state[2];  // momentum; or first and second moment
  const uint8_t* mask;
  uint8_t* gate;
  void* copy;
  float* scale;
  int64_t n;
  int64_t cols;   // elements of a row; of the tensor where that is one channel
  int64_t piece;  // elements of a piece in the first pass, a multiple of 32 unless there is one piece
  int64_t slot;   // its channels' first absmax in the workspace, where they are spread
  int64_t noise;  // its first block of noise, counted from the list's
  Divisor row;    // of the shorter of cols and step_longest_row
  int32_t gradient_dtype, copy_type;
  int32_t columns;  // channels are columns
  int32_t mode;
};
struct StepChunk {
  int32_t tensor, index;
};

// Panels of columns: chunk index = row block * panels + panel.
constexpr int64_t step_panels(int64_t cols) {
  return (cols + step_panel_columns - 1) / step_panel_columns;
}
// Whether the second pass goes by panels too: where rows begin inside a word of the gate, pieces must not.
constexpr bool step_quantizes_panels(const StepEntry& e) {
  return e.columns && (e.gate == nullptr || e.cols % 32 == 0);
}

// The workspace: this, absmax slots, corrections (fused_adamw), the workspace of the norm. Zeroed once.
struct StepState {
  StepGuard guard;
  unsigned long long non_finite_channels;
  uint32_t arrived, reserved;
};

// plan->operation
constexpr int step_tensors = 0, step_first_chunks = 1, step_second_chunks = 2, step_slots = 3,
              step_guarded = 4, step_with_history = 5, step_norm_chunks = 6;

}  // namespace esp
