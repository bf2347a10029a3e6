// How a list of tensors is cut for a fused optimizer step. Tensor is the operation's own struct.
#pragma once
#include <memory>
#include <new>

#include "fused_step.h"
#include "fused_step_table.h"

namespace {

// The table as it is written, or only counted where there is none.
template <class T>
class Rows {
 public:
  explicit Rows(char* memory) : memory_(reinterpret_cast<T*>(memory)) {}
  void add(const T& row) {
    if (memory_ != nullptr) memory_[count_] = row;
    count_++;
  }
  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  char* end(char* table) const {
    return table == nullptr ? nullptr : reinterpret_cast<char*>(memory_ + count_);
  }

 private:
  T* memory_;
  int64_t count_ = 0;
};

inline int64_t divide_up(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

// Elements of a piece of whole rows, 0 where no piece holds them. Bits of a piece share no word with
// another's.
inline int64_t piece_of_rows(int64_t rows, int64_t cols) {
  if (cols > esp::step_piece) return 0;
  if (rows <= esp::step_piece_rows && rows * cols <= esp::step_piece) return rows * cols;
  int64_t unit = 1;
  while (unit * cols % 32 != 0) unit *= 2;
  const int64_t most =
      esp::step_piece / cols < esp::step_piece_rows ? esp::step_piece / cols : esp::step_piece_rows;
  return most / unit * unit * cols;
}

template <class Tensor>
esp::StepEntry entry_of(const Tensor& t, int64_t slot, int64_t noise) {
  const bool columns = t.channel == ESP_CHANNEL_COLUMN;
  const int64_t n = esp::elements(t), cols = t.channel == ESP_CHANNEL_TENSOR ? n : t.cols;
  const int64_t counted = cols < esp::step_longest_row ? cols : esp::step_longest_row;
  esp::StepEntry e = {t.weight,
                      t.gradient,
                      {},  // the operation fills it in
                      t.mask,
                      t.gate,
                      t.working_copy,
                      t.scale,
                      n,
                      cols,
                      esp::step_piece,
                      slot,
                      noise,
                      esp::divisor_of(static_cast<uint32_t>(counted > 0 ? counted : 1)),
                      t.gradient_dtype,
                      t.working_copy_type,
                      columns,
                      esp::step_plain};
  if (t.scale == nullptr) return e;
  e.mode = esp::step_given;
  if (t.scale_given) return e;
  const int64_t piece = columns || n == 0 ? 0 : piece_of_rows(n / e.cols, e.cols);
  e.mode = piece > 0 ? esp::step_rows : esp::step_spread;
  if (piece > 0) e.piece = piece;
  return e;
}

// Pieces of a spread tensor in both passes alike: panels of columns where those are channels, else flat.
inline int64_t panels_of(const esp::StepEntry& e) {
  return esp::step_panels(e.cols) * divide_up(e.n / e.cols, esp::step_panel_rows);
}

// states(tensor, entry): fills in its state. corrections: bytes a tensor in the workspace. check(index,
// tensor): of the operation's state.
template <class Tensor, class Check, class States>
esp_status plan_step(const char* operation, const Tensor* tensors, int64_t count, bool guarded,
                     bool with_history, int64_t corrections, esp_cuda_plan* plan, void* table, Check&& check,
                     States&& states) {
  if (esp_status status = esp::check_list(operation, tensors, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %lld tensors", operation, static_cast<long long>(count));
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = esp::check_layout(operation, i, tensors[i])) return status;
    if (esp_status status = check(i, tensors[i])) return status;
  }

  char* const bytes = static_cast<char*>(table);
  Rows<esp::StepEntry> entries(bytes);
  int64_t slots = 0, noise = 0;
  for (int64_t i = 0; i < count; i++) {
    esp::StepEntry e = entry_of(tensors[i], slots, noise);
    noise += (e.n + 1) / 2;
    states(tensors[i], e);
    if (e.mode == esp::step_spread && e.n > 0) slots += esp::channels(tensors[i]);
    entries.add(e);
  }
  Rows<esp::StepChunk> first(entries.end(bytes));
  for (int64_t i = 0; i < count; i++) {
    const esp::StepEntry e = entry_of(tensors[i], 0, 0);
    if (e.n == 0) continue;
    const int64_t pieces = e.mode == esp::step_spread && e.columns ? panels_of(e) : divide_up(e.n, e.piece);
    if (first.count() + pieces > INT32_MAX) {  // 1.7e13 elements
      return esp::fail(ESP_UNSUPPORTED, "%s: over %d pieces of %d elements", operation, INT32_MAX,
                       esp::step_piece);
    }
    for (int64_t p = 0; p < pieces; p++) first.add({static_cast<int32_t>(i), static_cast<int32_t>(p)});
  }
  Rows<esp::StepChunk> second(first.end(bytes));
  for (int64_t i = 0; i < count; i++) {
    const esp::StepEntry e = entry_of(tensors[i], 0, 0);
    if (e.mode != esp::step_spread || e.n == 0) continue;
    const int64_t pieces = esp::step_quantizes_panels(e) ? panels_of(e) : divide_up(e.n, esp::step_piece);
    for (int64_t p = 0; p < pieces; p++) second.add({static_cast<int32_t>(i), static_cast<int32_t>(p)});
  }

  esp_cuda_plan norm = {};
  if (guarded) {
    std::unique_ptr<esp_gradient[]> gradients(new (std::nothrow) esp_gradient[static_cast<size_t>(count)]);
    if (!gradients)
      return esp::fail(ESP_OUT_OF_MEMORY, "%s: no memory for %lld tensors", operation,
                       static_cast<long long>(count));
    for (int64_t i = 0; i < count; i++) {
      const Tensor& t = tensors[i];
      gradients[i] = {t.gradient, t.mask, t.gate, esp::elements(t), t.gradient_dtype};
    }
    if (esp_status status = esp_cuda_gradient_norm_plan(gradients.get(), count, &norm, second.end(bytes)))
      return status;
  }
  const int64_t slot_bytes = (slots * 4 + 7) / 8 * 8;
  *plan = {
      entries.bytes() + first.bytes() + second.bytes() + norm.table_bytes,
      static_cast<int64_t>(sizeof(esp::StepState)) + slot_bytes + count * corrections + norm.workspace_bytes,
      {count, first.count(), second.count(), slots, guarded, with_history,
       norm.operation[esp::gradient_norm_chunks]}};
  return ESP_OK;
}

}  // namespace
