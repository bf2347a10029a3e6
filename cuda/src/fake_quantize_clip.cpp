#include "fake_quantize_clip.h"

#include <cstring>

#include "fake_quantize_arguments.h"

namespace {

constexpr const char* operation = "fake_quantize_clip";

int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

esp::ClipEntry entry_of(const esp_quantized& t) {
  const esp::SumOrder order = esp::sum_order(t.outer, t.channels, t.inner);
  int32_t group = 1;
  while (group < order.segments && group < esp::chunk_segments) group *= 2;
  return {t.x, t.scale, t.zero_point, t.running, order, 0, 0, t.dtype, group};
}

// The parts of a tensor by list.
void count_parts(const esp::ClipEntry& t, int64_t* parts) {
  parts[esp::clip_rows] = parts[esp::clip_columns] = 0;
  if (t.order.columns()) {
    parts[esp::clip_columns] = t.order.chunks * ceil_div(t.order.matrix.width, esp::clip_strip);
  } else {
    parts[esp::clip_rows] = ceil_div(t.order.channels * t.order.chunks, esp::clip_slots(t.group));
  }
  parts[esp::clip_channels] = ceil_div(t.order.channels, esp::clip_warps);
}

esp_status check(const esp_quantizer* quantizer, const esp_quantized& tensor, int64_t t) {
  const long long index = t;
  int64_t n = 0;
  if (esp_status status = esp::check_shape(operation, t, tensor.outer, tensor.channels, tensor.inner, &n))
    return status;
  if (esp_status status = esp::check_tensor(operation, t, tensor.x, n, tensor.dtype)) return status;
  if (tensor.channels == 0) return ESP_OK;
  const char* const missing = tensor.scale == nullptr                                     ? "scale"
                              : tensor.running == nullptr                                 ? "running"
                              : tensor.zero_point == nullptr && quantizer->symmetric == 0 ? "zero_point"
                                                                                          : nullptr;
  if (missing == nullptr) return ESP_OK;
  return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: %s is NULL", operation, index, missing);
}

}  // namespace

esp_status esp_cuda_fake_quantize_clip_plan(const esp_quantizer* quantizer, const esp_quantized* tensors,
                                            int64_t count, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: plan is NULL", operation);
  if (esp_status status = esp::check_quantizer(operation, quantizer)) return status;
  if (quantizer->observer != ESP_OBSERVER_MSE)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: observer %d; MSE (3) is needed", operation,
                     quantizer->observer);
  if (esp_status status = esp::check_list(operation, tensors, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %lld tensors", operation, static_cast<long long>(count));
  int64_t totals[esp::clip_lists] = {}, partials = 0, channels = 0;
  for (int64_t t = 0; t < count; t++) {
    if (esp_status status = check(quantizer, tensors[t], t)) return status;
    const esp::ClipEntry entry = entry_of(tensors[t]);
    int64_t parts[esp::clip_lists];
    count_parts(entry, parts);
    for (int list = 0; list < esp::clip_lists; list++) {
      totals[list] += parts[list];
      if (totals[list] > INT32_MAX) {
        return esp::fail(ESP_UNSUPPORTED, "%s: too many elements or channels for one call, at tensor %lld",
                         operation, static_cast<long long>(t));
      }
    }
    partials += entry.order.partials();
    channels += entry.order.channels;
  }
  int64_t all = 0;
  for (int list = 0; list < esp::clip_lists; list++) {
    plan->operation[list] = totals[list];
    all += totals[list];
  }
  plan->operation[esp::clip_tensors] = count;
  plan->operation[esp::clip_steps] = quantizer->clip_steps;
  plan->operation[esp::clip_all_channels] = channels;
  plan->table_bytes = static_cast<int64_t>(sizeof(esp::ClipHead)) +
                      count * static_cast<int64_t>(sizeof(esp::ClipEntry)) +
                      all * static_cast<int64_t>(sizeof(esp::ClipPart));
  plan->workspace_bytes = channels * static_cast<int64_t>(sizeof(esp::ClipBest)) +
                          partials * static_cast<int64_t>(sizeof(esp::ClipErrors));
  if (table == nullptr) return ESP_OK;

  std::memset(table, 0, sizeof(esp::ClipHead));
  auto* const head = static_cast<esp::ClipHead*>(table);
  head->quantizer = *quantizer;
  auto* const entries = reinterpret_cast<esp::ClipEntry*>(head + 1);
  esp::ClipPart* next[esp::clip_lists];
  next[0] = reinterpret_cast<esp::ClipPart*>(entries + count);
  for (int list = 1; list < esp::clip_lists; list++) next[list] = next[list - 1] + totals[list - 1];
  partials = channels = 0;
  for (int64_t t = 0; t < count; t++) {
    entries[t] = entry_of(tensors[t]);
    entries[t].partials = partials;
    entries[t].channel = channels;
    partials += entries[t].order.partials();
    channels += entries[t].order.channels;
    int64_t parts[esp::clip_lists];
    count_parts(entries[t], parts);
    for (int list = 0; list < esp::clip_lists; list++) {
      for (int32_t index = 0; index < parts[list]; index++) *next[list]++ = {static_cast<int32_t>(t), index};
    }
  }
  return ESP_OK;
}
