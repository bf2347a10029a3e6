#include "fused_sgd.h"

#include <memory>
#include <new>

#include "fused_sgd_arguments.h"

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

int64_t divide_up(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

// Elements of a piece of whole rows, 0 where no piece holds them. Bits of a piece share no word with
// another's.
int64_t piece_of_rows(int64_t rows, int64_t cols) {
  if (cols > esp::sgd_piece) return 0;
  if (rows <= esp::sgd_piece_rows && rows * cols <= esp::sgd_piece) return rows * cols;
  int64_t unit = 1;
  while (unit * cols % 32 != 0) unit *= 2;
  const int64_t most =
      esp::sgd_piece / cols < esp::sgd_piece_rows ? esp::sgd_piece / cols : esp::sgd_piece_rows;
  return most / unit * unit * cols;
}

esp::SgdEntry entry_of(const esp_sgd_tensor& t, int64_t slot) {
  const bool columns = t.channel == ESP_CHANNEL_COLUMN;
  const int64_t n = esp::elements(t);
  esp::SgdEntry e = {t.weight,
                     t.gradient,
                     t.momentum,
                     t.mask,
                     t.gate,
                     t.working_copy,
                     t.scale,
                     n,
                     t.channel == ESP_CHANNEL_TENSOR ? n : t.cols,
                     esp::sgd_piece,
                     slot,
                     t.gradient_dtype,
                     t.working_copy_type,
                     columns,
                     esp::sgd_plain};
  if (t.scale == nullptr) return e;
  e.mode = esp::sgd_given;
  if (t.scale_given) return e;
  const int64_t piece = columns || n == 0 ? 0 : piece_of_rows(n / e.cols, e.cols);
  e.mode = piece > 0 ? esp::sgd_rows : esp::sgd_spread;
  if (piece > 0) e.piece = piece;
  return e;
}

// Pieces of a spread tensor in both passes alike: panels of columns where those are channels, else flat.
int64_t panels_of(const esp::SgdEntry& e) {
  return esp::sgd_panels(e.cols) * divide_up(e.n / e.cols, esp::sgd_panel_rows);
}

}  // namespace

esp_status esp_cuda_fused_sgd_plan(const esp_sgd_tensor* tensors, int64_t count,
                                   const esp_sgd_options* options, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr || options == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %s is NULL", plan == nullptr ? "plan" : "options");
  }
  if (esp_status status = esp::check_sgd_options(*options)) return status;
  if (esp_status status = esp::check_list("fused_sgd", tensors, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "fused_sgd: %lld tensors", static_cast<long long>(count));
  for (int64_t i = 0; i < count; i++) {
    if (esp_status status = esp::check_layout("fused_sgd", i, tensors[i])) return status;
    if (esp_status status = esp::check_momentum(i, tensors[i], *options)) return status;
  }

  char* const bytes = static_cast<char*>(table);
  Rows<esp::SgdEntry> entries(bytes);
  int64_t slots = 0;
  for (int64_t i = 0; i < count; i++) {
    const esp::SgdEntry e = entry_of(tensors[i], slots);
    if (e.mode == esp::sgd_spread && e.n > 0) slots += esp::channels(tensors[i]);
    entries.add(e);
  }
  Rows<esp::SgdChunk> first(entries.end(bytes));
  for (int64_t i = 0; i < count; i++) {
    const esp::SgdEntry e = entry_of(tensors[i], 0);
    if (e.n == 0) continue;
    const int64_t pieces = e.mode == esp::sgd_spread && e.columns ? panels_of(e) : divide_up(e.n, e.piece);
    if (first.count() + pieces > INT32_MAX) {  // 1.7e13 elements
      return esp::fail(ESP_UNSUPPORTED, "fused_sgd: over %d pieces of %d elements", INT32_MAX,
                       esp::sgd_piece);
    }
    for (int64_t p = 0; p < pieces; p++) first.add({static_cast<int32_t>(i), static_cast<int32_t>(p)});
  }
  Rows<esp::SgdChunk> second(first.end(bytes));
  for (int64_t i = 0; i < count; i++) {
    const esp::SgdEntry e = entry_of(tensors[i], 0);
    if (e.mode != esp::sgd_spread || e.n == 0) continue;
    const int64_t pieces = esp::sgd_quantizes_panels(e) ? panels_of(e) : divide_up(e.n, esp::sgd_piece);
    for (int64_t p = 0; p < pieces; p++) second.add({static_cast<int32_t>(i), static_cast<int32_t>(p)});
  }

  const bool guarded = options->max_norm > 0 || options->skip_non_finite != 0;
  esp_cuda_plan norm = {};
  if (guarded) {
    std::unique_ptr<esp_gradient[]> gradients(new (std::nothrow) esp_gradient[static_cast<size_t>(count)]);
    if (!gradients)
      return esp::fail(ESP_OUT_OF_MEMORY, "fused_sgd: no memory for %lld tensors",
                       static_cast<long long>(count));
    for (int64_t i = 0; i < count; i++) {
      const esp_sgd_tensor& t = tensors[i];
      gradients[i] = {t.gradient, t.mask, t.gate, esp::elements(t), t.gradient_dtype};
    }
    if (esp_status status = esp_cuda_gradient_norm_plan(gradients.get(), count, &norm, second.end(bytes)))
      return status;
  }
  const int64_t slot_bytes = (slots * 4 + 7) / 8 * 8;
  *plan = {entries.bytes() + first.bytes() + second.bytes() + norm.table_bytes,
           static_cast<int64_t>(sizeof(esp::SgdState)) + slot_bytes + norm.workspace_bytes,
           {count, first.count(), second.count(), slots, guarded, options->momentum > 0,
            norm.operation[esp::gradient_norm_chunks]}};
  return ESP_OK;
}
